"""One trial of a fault: its run, its random choices, and what is expected after any fault.

Independent of the single faults.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm.checkpoint.directory import LOCK_NAME, checkpoint_name
from tests.support import jobs
from tests.support.jobs import STEPS, Baseline, Job
from tests.support.processes import Ended, run

RESUMABLE = os.EX_TEMPFAIL


@dataclass
class Trial:
    """One fault inflicted on one run.

    Attributes:
        baseline: The data and the uninterrupted runs.
        ranks: Number of ranks of the run.
        random: Chooses the moment, the rank and the position in a file.
        folder: The folder for everything that this trial writes.
        starts: Number of jobs started so far.
    """

    baseline: Baseline
    ranks: int
    random: random.Random
    folder: Path
    starts: int = 0

    @property
    def checkpoints(self) -> Path:
        """The run's checkpoint_dir."""
        return self.folder / "checkpoints"

    def any_rank(self) -> int:
        """A random rank."""
        return self.random.randrange(self.ranks)

    def any_step(self) -> int:
        """A random step, not too near the end to be interrupted."""
        return self.random.randrange(1, STEPS - 15)

    def start(self, *program: str | Path, around: tuple[str, ...] = (), **settings: Any) -> Job:
        """Starts the training, by main.py or by another program with its flags."""
        self.starts += 1
        settings = {"checkpoint_dir": self.checkpoints, **settings}
        command = [*around, *self.baseline.training(self.ranks, settings, *program)]
        return Job(self.folder / f"{self.starts}.txt", command, program[:2] or ("main.py",))

    def run_main(self, *cases: dict[str, Any]) -> list[tuple[int, str]]:
        """Runs main.py once for each of several settings; returns code and output of each."""
        arguments = [jobs.flags({"data_dir": self.baseline.data, **case}) for case in cases]
        (self.folder / "cases.json").write_text(json.dumps(arguments))
        worker = ["python3", "-m", "tests.faults.workers.main_repeatedly"]
        files = [self.folder / "cases.json", self.folder]
        command = jobs.on_ranks(self.ranks, *worker, *files)
        ended = run(command, time_limit=jobs.TIME_LIMIT)
        assert ended.code == 0, ended.output
        found = [json.loads((self.folder / f"{r}.json").read_text()) for r in range(self.ranks)]
        merged = []
        for results in zip(*found):
            codes = {code for code, _ in results}
            assert len(codes) == 1, f"the ranks end differently: {results}"
            merged.append((codes.pop(), "".join(text for _, text in results)))
        return merged

    def resume_to_same_end(self) -> str:
        """Starts again and expects the weights of the uninterrupted run; returns the output."""
        left = jobs.whole(self.checkpoints) if self.checkpoints.exists() else []
        output = succeeded(self.start().end())
        if left:
            expect(f"{left[-1]} steps done", output)
        self.expect_end()
        return output

    def expect_end(self) -> None:
        """Expects the weights of the uninterrupted run, and no leftovers."""
        last = checkpoint_name(STEPS)
        expected = jobs.weights(self.baseline.uninterrupted(self.ranks) / last)
        assert jobs.same(jobs.weights(self.checkpoints / last), expected), "other weights"
        found = {path.name for path in self.checkpoints.iterdir()}
        hidden = {name for name in found if name.startswith(".")}
        assert hidden == {LOCK_NAME}, f"left behind: {hidden}"


def kill(pids: Iterable[int]) -> None:
    """Ends processes, if they exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def succeeded(ended: Ended) -> str:
    """Expects success; returns the output."""
    assert ended.code == 0, ended.output
    return ended.output


def expect(text: str, output: str) -> None:
    """Expects a text somewhere in an output."""
    assert text in output, f"expected {text!r} in\n{output}"


def expect_error(output: str, *parts: str) -> str:
    """Expects an error line with all these parts, and returns it."""
    found = jobs.errors(output)
    fitting = [line for line in found if all(part in line for part in parts)]
    assert fitting, f"expected an error line with {parts}, found {found} in\n{output}"
    return fitting[0]


def expect_resumable(trial: Trial, job: Job) -> int:
    """Expects code 75 and a whole checkpoint of the step that the run names; returns the step."""
    ended = job.end()
    code = jobs.code_of_ranks(ended) if ended.code else 0
    assert code == RESUMABLE, f"expected code {RESUMABLE}, found {code}:\n{ended.output}"
    named = re.search(r"stopped by a signal after (\d+) steps", ended.output)
    assert named, ended.output
    left = jobs.whole(trial.checkpoints)
    assert left[-1] == int(named[1]), f"{left} after {named[0]}"
    return left[-1]
