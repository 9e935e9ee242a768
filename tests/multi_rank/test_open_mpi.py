"""Ranks that Open MPI's `mpirun` started: killed, stopped, resumed, and the same as with Gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlrm.checkpoint.directory import checkpoint_name, finished
from tests.support.jobs import EPOCH_STEPS, Job, flags, on_ranks, same, weights, write_data

pytestmark = pytest.mark.slow
EPOCHS = 5
TIME_LIMIT = 600.0
MPIRUN = ["--oversubscribe", *([] if os.geteuid() else ["--allow-run-as-root"])]


@pytest.fixture(autouse=True)
def _needs_mpi() -> None:
    built = "from horovod.common.util import mpi_built; assert mpi_built()"
    if subprocess.run([sys.executable, "-c", built], capture_output=True).returncode:
        pytest.skip("needs Horovod with MPI: make mpi-setup")


def test_killed_then_stopped_then_resumed(tmp_path: Path) -> None:
    """The end is that of a run with Gloo that nothing happened to, bit for bit."""
    write_data(tmp_path / "data")
    common = {
        "data_dir": tmp_path / "data",
        "epochs": EPOCHS,
        "eval_interval": 100,
        "checkpoint_interval": 40,
        "keep_checkpoints": 1,
    }
    checkpoints = tmp_path / "checkpoints"
    launch = ["python3", "-m", "launch", "--mpi", "-np", "2", *MPIRUN, "--"]
    command = [*launch, "main.py", *flags({**common, "checkpoint_dir": checkpoints})]
    with Job(tmp_path / "first.txt", command, time_limit=TIME_LIMIT) as job:
        job.wait_for("a checkpoint", lambda: finished(checkpoints))
        job.send(1, signal.SIGKILL)
        job.wait_for("the launcher's line", lambda: "launch: attempt 1 ended" in job.output)
        reached = job.output.count("Iteration:")
        job.wait_for("more steps", lambda: job.output.count("Iteration:") > reached + 5)
        (launcher,) = job.processes("-m", "launch")
        launcher.terminate()
        ended = job.end()
    assert ended.code == 75, ended.output
    assert "attempt 1 ended with code 137" in ended.output
    assert finished(checkpoints)[-1].name != checkpoint_name(EPOCHS * EPOCH_STEPS)

    ended = Job(tmp_path / "second.txt", command, time_limit=TIME_LIMIT).end()
    assert ended.code == 0, ended.output
    alone = flags({**common, "checkpoint_dir": tmp_path / "gloo"})
    gloo = on_ranks(2, "python3", "main.py", *alone)
    ended = Job(tmp_path / "gloo.txt", gloo, time_limit=TIME_LIMIT).end()
    assert ended.code == 0, ended.output
    last = checkpoint_name(EPOCHS * EPOCH_STEPS)
    assert same(weights(checkpoints / last), weights(tmp_path / "gloo" / last))
