"""What `run_with_docker.sh` says if it cannot start. `test_image.py` runs it with an image."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = pytest.mark.one_profile
SCRIPT = ROOT / "launch" / "docker" / "run_with_docker.sh"
GOOD = {"CONT": "dlrm", "DGXSYSTEM": "demo"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"DGXSYSTEM": "demo"},
            "error: expected CONT, the name of an image, found none; build one: ",
        ),
        ({"CONT": "dlrm"}, "error: expected DGXSYSTEM, the name of a system, found none; set "),
        ({**GOOD, "DATADIR": "nowhere"}, "error: DATADIR: expected a folder with data, found 'now"),
        (
            {**GOOD, "DGXSYSTEM": "DGX9"},
            "error: DGXSYSTEM: expected one of DGX2 DGXA100 ",
        ),
        (
            GOOD,
            "error: expected a Docker daemon that root may use, found none; see: docker version",
        ),
    ],
)
def test_what_is_missing_is_one_line(
    variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    """In the last case all variables are right, but no daemon listens."""
    done = subprocess.run(
        [str(SCRIPT)],
        env={"PATH": os.environ["PATH"], "DOCKER_HOST": f"unix://{tmp_path}/none", **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    (line,) = done.stderr.splitlines()
    assert line.startswith(message.replace("root", user))
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (1, "", [])
