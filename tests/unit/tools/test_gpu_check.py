"""tools.gpu_check on a machine without a GPU: what it checks all the same, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dlrm.distributed.collective import Collective
from tests.support.processes import horovodrun, run
from tools.gpu_check.checks import CHECKS, run_check
from tools.gpu_check.setup import CheckSetup, FailedError, SkippedError
from tools.gpu_check.training_checks import compare_losses

pytestmark = [pytest.mark.gpu, pytest.mark.runs]


@pytest.mark.multi_rank
def test_two_ranks_without_a_gpu(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    checks = ["devices", "alltoall against NumPy", "sok against NumPy"]
    command = [sys.executable, "-m", "tools.gpu_check", "--cpu", "--batch=96", f"--json={found}"]
    ended = horovodrun(2, *command, "--only", *checks, time_limit=200)
    assert ended.code == 0, ended.output
    lines = json.loads(found.read_text())
    assert [line["check"] for line in lines] == checks
    assert [line["verdict"] for line in lines] == ["pass", "pass", "skip"]
    assert len(lines[1]["data"]["errors"]) == 12
    assert "2 passed, 0 failed, 1 skipped" in ended.output


def test_a_gpu_is_expected() -> None:
    ended = run([sys.executable, "-m", "tools.gpu_check"], time_limit=100)
    assert ended.code == 1
    assert "error: expected a GPU, found none; set --cpu" in ended.output


def test_help_lists_one_check_per_line() -> None:
    ended = run([sys.executable, "-m", "tools.gpu_check", "--help"], time_limit=100)
    assert ended.code == 0
    assert "--only CHECK [CHECK ...]" in ended.output
    assert "\n".join(["checks:", *(f'  "{name}"' for name in CHECKS), ""]) in ended.output


def raising(error: Exception) -> Any:
    def check(setup: CheckSetup) -> Any:
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SkippedError("not here"), "skip"),
        (FailedError("off by one", [1]), "FAIL"),
        (ValueError("two\nlines"), "FAIL"),
    ],
)
def test_verdicts(error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKS, "devices", raising(error))
    line = run_check("devices", CheckSetup(Collective(), 8))
    assert line["verdict"] == expected
    assert "\n" not in line["words"]


def test_losses_that_part_fail() -> None:
    assert compare_losses(1e-3, [0.5, 0.4], [0.5, 0.4001]).data["difference"] == pytest.approx(
        2.5e-4
    )
    with pytest.raises(FailedError, match=r"differ by 2\.5e-02"):
        compare_losses(1e-3, [0.5, 0.4], [0.5, 0.41])
