"""A job on a real Slurm cluster is preempted, requeued and resumed, and ends as if it had not been.

Quicker tests of the batch script, with stand-ins for srun and scontrol, are in test_run_sub.py.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlrm.checkpoint.directory import checkpoint_name
from tests.support.jobs import EPOCH_STEPS, flags, write_data
from tests.support.slurm_cluster import REQUEUE_SECONDS, SlurmCluster, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
EPOCHS = 30
STEPS = EPOCHS * EPOCH_STEPS
START_SECONDS, TRAINING_SECONDS = 180.0, 600.0
SETTINGS = {"epochs": EPOCHS, "eval_interval": 1000, "checkpoint_interval": 10 * STEPS}


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    # Not pytest's folder: its path is too long for sockets.
    with tempfile.TemporaryDirectory() as folder, SlurmCluster(Path(folder)) as cluster:
        yield cluster


class Trainings:
    """Jobs of run.sub on both nodes, one rank on each.

    Args:
        cluster: Where they run.
        folder: For their data, logs and results.
    """

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        write_data(folder / "data")
        self._environment = {
            "DGXNGPU": "1",
            "DATADIR": str(folder / "data"),
            "LOGDIR": str(folder),
            "SEED": "7",
            "CLEAR_CACHES": "0",
            "FLAGS": " ".join(["--flagfile=presets/demo.flags", *flags(SETTINGS)]),
        }

    def submit(self) -> str:
        """Submits a training; returns the job's number."""
        log = self._folder / "job-%j.log"
        options = ["--parsable", "--partition=low", "--nodes=2", f"--output={log}"]
        command = ["sbatch", *options, "launch/slurm/run.sub"]
        return self._cluster.ask(*command, env=self._environment).strip()

    def job_log(self, job: str) -> str:
        """What the job's own log holds so far."""
        log = self._folder / f"job-{job}.log"
        return log.read_text() if log.exists() else ""

    def events(self, job: str, kind: str) -> list[dict[str, Any]]:
        """The recorded events of a kind."""
        log = self._folder / f"{job}_1" / "events.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in events if event["event"] == kind]

    def tensors(self, job: str) -> dict[str, bytes]:
        """The files of weights of the last checkpoint."""
        folder = self._folder / f"{job}_1" / "checkpoints" / checkpoint_name(STEPS)
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    def wait(self, job: str) -> None:
        """Waits until the job has left the queue."""
        self._cluster.until(
            lambda: not self._cluster.ask("squeue", "-h", "-j", job), TRAINING_SECONDS
        )


def test_a_preempted_job_ends_as_an_uninterrupted_one(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    trainings = Trainings(cluster, tmp_path)
    whole = trainings.submit()
    trainings.wait(whole)
    assert "training 1 of 1 is finished" in trainings.job_log(whole)

    job = trainings.submit()
    cluster.until(lambda: len(trainings.events(job, "step")) > 10, START_SECONDS)
    urgent = ["--partition=high", "--nodes=2", f"--output={tmp_path}/urgent.log"]
    cluster.ask("sbatch", *urgent, "--wrap=srun --nodes=2 echo urgent")
    trainings.wait(job)

    said = re.findall(r"run\.sub: (.*?)(?:[:;,] .*)?\n", trainings.job_log(job))
    assert said == [
        "training 1 of 1",
        "training 1 of 1 was stopped by a signal (code 75)",
        "training 1 of 1",
        "training 1 of 1 is finished",
    ], trainings.job_log(job)
    assert f"start 1 of job {job}: 2 ranks on n[1-2], seed 7" in trainings.job_log(job)
    assert f"start 2 of job {job}: 2 ranks on n[1-2], seed 7" in trainings.job_log(job)
    assert (tmp_path / "urgent.log").read_text() == "urgent\nurgent\n"
    (saved, last) = (event["step"] for event in trainings.events(job, "checkpoint"))
    assert 10 < saved < last == STEPS

    losses = [
        {event["step"]: event["loss"] for event in trainings.events(one, "step")}
        for one in (whole, job)
    ]
    assert losses[0].keys() == set(range(1, STEPS + 1))
    assert losses[1] == losses[0]
    tensors = trainings.tensors(whole)
    assert len(tensors) == 3  # dense weights, and the rows of two ranks
    assert trainings.tensors(job) == tensors


def test_a_cancelled_job_stays_cancelled_and_keeps_a_checkpoint(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    trainings = Trainings(cluster, tmp_path)
    job = trainings.submit()
    cluster.until(lambda: len(trainings.events(job, "step")) > 10, START_SECONDS)
    cluster.ask("scancel", job)
    trainings.wait(job)
    assert len(trainings.events(job, "checkpoint")) == 1
    time.sleep(2 * REQUEUE_SECONDS)
    assert "JobState=CANCELLED" in cluster.ask("scontrol", "show", "job", job)
    assert "back into the queue" not in trainings.job_log(job)
