"""Training runs of a stability study: which there are, which are finished, and how one is made.

A run is `main.py` on one rank in a process of its own. What is finished stays in the study's folder
as a line of `runs.jsonl`, so that a study that was stopped goes on, and more seeds only add to it.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from benchmarks.ranks import ROOT
from dlrm.formats.checksums import read_checksums

TYPES: dict[str, tuple[str, ...]] = {
    "float32": (),
    "bfloat16": ("--amp", "--amp_dtype=bfloat16"),
    "float16": ("--amp", "--amp_dtype=float16"),
}
# What main.py says when training diverged; any other error is no result of a study.
DIVERGED = ("not finite", "the log loss is")
TAIL = 2000  # characters of a failed run's output that are shown


@dataclass(frozen=True)
class SeedRun:
    """One finished run.

    Attributes:
        key: All that its result depends on, except the code.
        seed: Its seed.
        type: The type that it computed in, one of `TYPES`.
        steps: Number of steps at each evaluation.
        aucs: AUC at each evaluation, the last of which stands for the run.
        seconds: Wall time from the first step on; other runs shared the machine.
        error: The line with which training ended, if it diverged.
    """

    key: str
    seed: int
    type: str
    steps: tuple[int, ...]
    aucs: tuple[float, ...]
    seconds: float
    error: Optional[str] = None

    @property
    def auc(self) -> Optional[float]:
        """The AUC of the last evaluation; None if training diverged."""
        return None if self.error else self.aucs[-1]

    def steps_until(self, target: float) -> Optional[int]:
        """The steps before the first evaluation above the target; None if there was none."""
        return next((s for s, auc in zip(self.steps, self.aucs) if auc > target), None)


@dataclass(frozen=True)
class Study:
    """What is trained, and where its results are kept.

    Attributes:
        data: Folder with `train/` and `test/`.
        output: Folder of the results.
        flags: Flags of main.py that all runs share.
    """

    data: Path
    output: Path
    flags: tuple[str, ...]

    def key(self, kind: str, seed: int) -> str:
        """All that a run's result depends on, except the code.

        Raises:
            ValueError: A folder's checksums are malformed.
        """
        sums = [read_checksums(self.data / part) for part in ("train", "test")]
        return json.dumps([*self.flags, *TYPES[kind], seed, str(sums)])

    def finished(self) -> Iterator[SeedRun]:
        """The runs that were kept, also of other settings."""
        path = self.output / "runs.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut short by a crash
            yield SeedRun(
                **{**fields, "steps": tuple(fields["steps"]), "aucs": tuple(fields["aucs"])}
            )

    def train(self, kind: str, seed: int) -> SeedRun:
        """Trains one model on the cores of the calling thread.

        Raises:
            ValueError: The run ended neither with a result nor because training diverged; the
                message ends with the last lines that it wrote.
        """
        folder = self.output / f"{kind}-{seed}"
        log = folder / "events.jsonl"
        log.unlink(missing_ok=True)
        command = ["./hvd_wrapper.sh", sys.executable, "main.py", f"--data_dir={self.data}"]
        command += [*self.flags, *TYPES[kind], f"--seed={seed}", f"--run_dir={folder}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        events: list[dict[str, Any]] = [json.loads(line) for line in lines]
        error = events[-1].get("message", "") if events else ""
        diverged = any(words in error for words in DIVERGED)
        if not diverged and (done.returncode or not events or events[-1]["event"] != "result"):
            raise ValueError(
                f"{' '.join(command)} ended with code {done.returncode}; its last lines are:\n"
                f"{(done.stdout + done.stderr)[-TAIL:]}"
            )
        evaluations = [event for event in events if event["event"] == "evaluation"]
        return SeedRun(
            self.key(kind, seed),
            seed,
            kind,
            tuple(event["step"] for event in evaluations),
            tuple(event["auc"] for event in evaluations),
            round(events[-1]["time"] - events[0]["time"], 1),
            error if diverged else None,
        )

    def keep(self, run: SeedRun) -> None:
        """Appends a run to the finished ones."""
        with (self.output / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(run)) + "\n")


def train_all(
    study: Study,
    kinds: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
    say: Callable[[str], None],
) -> list[SeedRun]:
    """Trains what is not finished yet, and returns all runs, by seed and then by type.

    Args:
        study: What to train.
        kinds: Some of `TYPES`.
        seeds: The seeds.
        jobs: Number of runs at a time, among which the cores of this process are divided.
        say: Takes a line for each run that ends.

    Raises:
        ValueError: A run failed for a reason other than divergence; the others are kept.
    """
    wanted = {study.key(kind, seed): (kind, seed) for seed in seeds for kind in kinds}
    runs = {run.key: run for run in study.finished() if run.key in wanted}
    cores = sorted(os.sched_getaffinity(0))
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for job in range(jobs):
        shares.put(cores[job % len(cores) :: jobs])

    def take_cores() -> None:
        # Of this thread alone; what it starts inherits them.
        os.sched_setaffinity(threading.get_native_id(), shares.get())

    study.output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs, initializer=take_cores) as pool:
        missing = [wanted[key] for key in wanted if key not in runs]
        futures = [pool.submit(study.train, *run) for run in missing]
        try:
            for future in as_completed(futures):
                run = future.result()
                study.keep(run)
                runs[run.key] = run
                found = run.error or f"AUC {run.aucs[-1]:.6f}"
                say(
                    f"{len(runs)} of {len(wanted)}: {run.type}, seed {run.seed}: {found}, "
                    f"{run.seconds:.0f} s"
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [runs[key] for key in wanted]
