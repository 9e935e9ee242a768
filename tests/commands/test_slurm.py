"""Jobs on a real Slurm cluster are stopped in several ways, and end as one that was not.

Quicker tests of the batch script, with stand-ins for srun and scontrol, are in test_run_sub.py.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlrm.checkpoint.directory import checkpoint_name
from tests.support.jobs import EPOCH_STEPS, flags, write_data
from tests.support.processes import ROOT
from tests.support.slurm_cluster import REQUEUE_SECONDS, SlurmCluster, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
EPOCHS = 60  # Slurm must take less time to preempt a job than that
STEPS = EPOCHS * EPOCH_STEPS
START_SECONDS, TRAINING_SECONDS, STOP_SECONDS = 600.0, 900.0, 500.0  # on busy cores
SETTINGS = {"epochs": EPOCHS, "eval_interval": 1000, "checkpoint_interval": 100}


class Trainings:
    """Jobs of run.sub on both nodes, one rank on each.

    Args:
        cluster: Where they run.
        folder: For their data, logs and results.
    """

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        write_data(folder / "data")
        self._environment = {
            "DGXNGPU": "1",
            "DATADIR": str(folder / "data"),
            "LOGDIR": str(folder),
            "SEED": "7",
            "CLEAR_CACHES": "0",
            "VENV": os.path.relpath(sys.prefix, ROOT),
            "FLAGS": " ".join(["--flagfile=presets/demo.flags", *flags(SETTINGS)]),
        }

    def submit(self) -> str:
        """Submits a training; returns the job's number."""
        log = self.folder / "job-%j.log"
        options = ["--parsable", "--partition=low", "--nodes=2", f"--output={log}"]
        command = ["sbatch", *options, "launch/slurm/run.sub"]
        return self.cluster.ask(*command, env=self._environment).strip()

    def submit_and_wait_for(self, step: int) -> str:
        """Submits a training and waits until it is beyond a step."""
        job = self.submit()
        self.cluster.until(lambda: len(self.events(job, "step")) > step, START_SECONDS)
        return job

    def said(self, job: str) -> str:
        """What the job's own log holds so far."""
        log = self.folder / f"job-{job}.log"
        return log.read_text() if log.exists() else ""

    def summary(self, job: str) -> list[str]:
        """The first words of each line of run.sub."""
        return re.findall(r"run\.sub: training 1 of 1(.*?)(?:[:;] .*)?\n", self.said(job))

    def events(self, job: str, kind: str) -> list[dict[str, Any]]:
        """The recorded events of a kind."""
        log = self.folder / f"{job}_1" / "events.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in events if event["event"] == kind]

    def losses(self, job: str) -> dict[int, float]:
        """The loss of each step, as it was computed last."""
        return {event["step"]: event["loss"] for event in self.events(job, "step")}

    def tensors(self, job: str) -> dict[str, bytes]:
        """The files of weights of the last checkpoint."""
        folder = self.folder / f"{job}_1" / "checkpoints" / checkpoint_name(STEPS)
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    def wait(self, job: str) -> None:
        """Waits until the job has left the queue."""
        self.cluster.until(
            lambda: not self.cluster.ask("squeue", "-h", "-j", job), TRAINING_SECONDS
        )


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    # Not pytest's folder: its path is too long for sockets.
    with tempfile.TemporaryDirectory() as folder, SlurmCluster(Path(folder)) as cluster:
        yield Trainings(cluster, tmp_path_factory.mktemp("trainings"))


@pytest.fixture(scope="module")
def whole(trainings: Trainings) -> str:
    """A job that nothing stops."""
    job = trainings.submit()
    trainings.wait(job)
    start = f", start 1 of job {job}"
    assert trainings.summary(job) == [start, " is finished"], trainings.said(job)
    assert trainings.losses(job).keys() == set(range(1, STEPS + 1))
    assert len(trainings.tensors(job)) == 3  # dense weights, and the rows of two ranks
    return job


def test_a_preempted_job_ends_as_if_it_had_not_been(trainings: Trainings, whole: str) -> None:
    job = trainings.submit_and_wait_for(step=10)
    log = trainings.folder / "urgent.log"
    urgent = ["--partition=high", "--nodes=2", f"--output={log}"]
    trainings.cluster.ask("sbatch", *urgent, "--wrap=srun --nodes=2 echo urgent")
    trainings.wait(job)

    assert log.read_text() == "urgent\nurgent\n"
    assert trainings.summary(job) == [
        f", start 1 of job {job}",
        " was stopped by a signal (code 75)",
        f", start 2 of job {job}",
        " is finished",
    ], trainings.said(job)
    first, resumed = (event["step"] for event in trainings.events(job, "start"))
    assert first == 0
    assert 10 < resumed < STEPS
    assert trainings.losses(job) == trainings.losses(whole)
    assert trainings.tensors(job) == trainings.tensors(whole)


def test_a_job_goes_on_after_one_of_its_nodes_was_unreachable(
    trainings: Trainings, whole: str
) -> None:
    job = trainings.submit_and_wait_for(step=110)
    trainings.cluster.network.pull("n2")
    trainings.cluster.until(lambda: "back into the queue" in trainings.said(job), STOP_SECONDS)
    trainings.cluster.network.plug_in("n2")
    trainings.wait(job)

    # Slurm may kill the next step, too, when it cleans up what the first one left on n2.
    start = rf", start \d of job {job}"
    expected = rf"{start}( ended with code \d+ after step-\d+{start}){{1,2}} is finished"
    assert re.fullmatch(expected, "".join(trainings.summary(job))), trainings.said(job)
    lines = (trainings.folder / f"{job}_1.log").read_text()
    assert "error: rank 1 is lost: " in lines
    assert trainings.losses(job) == trainings.losses(whole)
    assert trainings.tensors(job) == trainings.tensors(whole)


def test_a_cancelled_job_stays_cancelled_and_keeps_a_checkpoint(trainings: Trainings) -> None:
    job = trainings.submit_and_wait_for(step=10)
    trainings.cluster.ask("scancel", job)
    trainings.wait(job)
    assert trainings.events(job, "checkpoint")
    time.sleep(2 * REQUEUE_SECONDS)
    assert "JobState=CANCELLED" in trainings.cluster.ask("scontrol", "show", "job", job)
    assert "back into the queue" not in trainings.said(job)
