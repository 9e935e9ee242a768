"""Real training runs for the fault suite to inflict faults on, and what they leave behind.

A small model on small data, started as a user would. Works with processes, flags and files, and is
independent of the faults; it must not load TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
import psutil
from numpy.typing import NDArray

from dlrm.checkpoint.directory import checkpoint_name, finished, step_of
from dlrm.checkpoint.manifest import read_manifest
from dlrm.checkpoint.safetensors_file import TensorReader
from tests.support.processes import Ended, run
from tests.support.tiny_data import write_split

MARK = "TEST_JOB_MARK"
TIME_LIMIT = 240.0  # a start on three ranks takes 10 to 60 s of two cores, by how busy they are
POLL_SECONDS = 0.001
NUM_DENSE, VOCAB_SIZES = 4, (40000, 300, 5)
GLOBAL_BATCH, EPOCH_STEPS, TEST_SAMPLES = 48, 40, 48 * 50 - 5
EPOCHS, EVAL_INTERVAL, CHECKPOINT_INTERVAL = 2, 30, 10
STEPS = EPOCHS * EPOCH_STEPS
SETTINGS: dict[str, Any] = {
    "global_batch_size": GLOBAL_BATCH,
    "embedding_dim": 16,
    "bottom_mlp": "32,16",
    "top_mlp": "32,1",
    "lr": 0.1,
    "warmup_steps": 20,
    "decay_start_step": 60,
    "decay_steps": 500,
    "epochs": EPOCHS,
    "eval_interval": EVAL_INTERVAL,
    "auc_target": 1.0,
    "checkpoint_interval": CHECKPOINT_INTERVAL,
    "log_interval": 1,
}
Weights = dict[str, NDArray[Any]]


def write_data(folder: Path) -> None:
    """Writes training and test data."""
    for part, samples in (("train", EPOCH_STEPS * GLOBAL_BATCH + 10), ("test", TEST_SAMPLES)):
        generator = np.random.default_rng(samples)
        labels = generator.integers(0, 2, samples).astype("<i4")
        dense = generator.random([samples, NUM_DENSE]).astype("<f4")
        ids = generator.integers(0, VOCAB_SIZES, [samples, 3]).astype("<i4")
        described = {"dense_log": False, "num_dense": NUM_DENSE}
        write_split(folder / part, labels, dense, ids, VOCAB_SIZES, **described)


def flags(settings: dict[str, Any]) -> list[str]:
    """`SETTINGS` and the given settings as arguments of main.py."""
    return [f"--{name}={value}" for name, value in {**SETTINGS, **settings}.items()]


def on_ranks(ranks: int, *command: str | Path) -> list[str | Path]:
    """The command line that starts a command on a number of ranks."""
    horovodrun = Path(sys.executable).with_name("horovodrun")
    alone: list[str | Path] = ["./hvd_wrapper.sh", *command]
    return alone if ranks == 1 else [horovodrun, "--gloo", "-np", str(ranks), *alone]


class Job:
    """A running command, whose ranks can be found and whose output can be read.

    Args:
        output: The file that receives its output.
        command: The program and its arguments, as for `processes.run`.
        program: The script that its ranks run, or `-m` and the module.
        time_limit: The longest that it may take, in seconds.
    """

    def __init__(
        self,
        output: Path,
        command: Sequence[str | Path],
        program: Sequence[str | Path] = ("main.py",),
        time_limit: float = TIME_LIMIT,
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._output, self._program, self._time_limit = output, program, time_limit
        output.touch()
        pool = ThreadPoolExecutor(1)
        self._ended = pool.submit(
            run,
            ["sh", "-c", 'exec "$@" >"$0" 2>&1', output, *command],
            time_limit=time_limit,
            env={MARK: self._mark},
        )
        pool.shutdown(wait=False)

    def __enter__(self) -> Job:
        """Returns itself; leaving the context ends what still runs."""
        return self

    def __exit__(self, *_: object) -> None:
        while not self._ended.done():
            for pid in self.ranks().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    @property
    def output(self) -> str:
        """What it wrote so far."""
        return self._output.read_text(errors="replace")

    def processes(self, *words: str | Path) -> Iterator[psutil.Process]:
        """Its live processes that run an interpreter with these first arguments."""
        argv = [os.fspath(word) for word in words]
        for process in psutil.process_iter(["cmdline", "environ", "status"]):
            started = (process.info["cmdline"] or [])[1 : 1 + len(argv)] == argv
            ours = (process.info["environ"] or {}).get(MARK) == self._mark
            if started and ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                yield process

    def ranks(self) -> dict[int, int]:
        """Process ids of the running ranks, without the shells around them."""
        return {
            rank_of(process.info["environ"]): process.pid
            for process in self.processes(*self._program)
        }

    def send(self, rank: int, number: signal.Signals) -> None:
        """Sends a signal to a rank, which must exist."""
        os.kill(self.ranks()[rank], number)

    def wait_for(self, what: str, condition: Callable[[], Any]) -> None:
        """Waits until the condition holds, which must be before the command ends."""
        end = time.monotonic() + self._time_limit
        while not condition():
            assert not self._ended.done(), f"ended before {what}:\n{self.output}"
            assert time.monotonic() < end, f"no {what}:\n{self.output}"
            time.sleep(POLL_SECONDS)

    def wait_for_step(self, step: int) -> None:
        """Waits until rank 0 has reported that it has done the step."""
        self.wait_for(f"step {step}", lambda: f"Iteration:{step}\t" in self.output)

    def wait_until_gone(self, ranks: Sequence[int], seconds: float) -> float:
        """Waits until these ranks are gone; returns the seconds it took."""
        begin = time.monotonic()
        while left := self.ranks().keys() & set(ranks):
            waited = time.monotonic() - begin
            assert waited < seconds, f"ranks {left} still run after {waited:.0f} s:\n{self.output}"
            time.sleep(0.05)
        return time.monotonic() - begin

    def end(self) -> Ended:
        """Waits for the command to end."""
        try:
            ended = self._ended.result()
        except AssertionError as error:  # out of time, or left a process behind
            raise AssertionError(f"{error}\n{self.output}") from None
        return Ended(ended.code, self.output + ended.output, ended.seconds)


def rank_of(environment: Mapping[str, str]) -> int:
    """The rank of a process that horovodrun or Open MPI started; 0 without a launcher."""
    return int(environment.get("HOROVOD_RANK") or environment.get("OMPI_COMM_WORLD_RANK") or 0)


def code_of_ranks(ended: Ended) -> int:
    """The exit code of the first rank that failed, or of a command without a launcher."""
    found = re.search(r"^Process \d+ exit with status code (\d+)", ended.output, re.MULTILINE)
    return int(found[1]) if found else ended.code


def errors(output: str) -> list[str]:
    """Each distinct error line, without the launcher's prefix."""
    return sorted(set(re.findall(r"^(?:\[\d+\]<stderr>:)?error: (.*)$", output, re.MULTILINE)))


def weights(checkpoint: Path) -> Weights:
    """All tensors of a checkpoint, every byte of it checked.

    Raises:
        ValueError: The checkpoint is damaged or incomplete.
    """
    manifest = read_manifest(checkpoint)
    found = {}
    for file, digest in manifest.files.items():
        with TensorReader(checkpoint / file, digest) as reader:
            reader.read_bytes(0, digest.size)
            found.update({f"{file} {name}": reader.read(name) for name in reader.tensors})
    return found


def whole(directory: Path) -> list[int]:
    """The steps of the checkpoints of a folder, each of which must be whole.

    Raises:
        ValueError: A checkpoint is damaged or incomplete.
    """
    found = finished(directory)
    for path in found:
        weights(path)
    return [step_of(path) for path in found]


def same(one: Weights, other: Weights) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit."""
    return one.keys() == other.keys() and all(
        values.tobytes() == other[name].tobytes() for name, values in one.items()
    )


class Baseline:
    """What all trials share: the data, and an uninterrupted run of each number of ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        write_data(self.data)

    def uninterrupted(self, ranks: int) -> Path:
        """All checkpoints of a run without a fault."""
        directory = self.folder / f"uninterrupted-{ranks}"
        if not directory.exists():
            settings = {"checkpoint_dir": directory, "keep_checkpoints": STEPS}
            command = self.training(ranks, settings)
            ended = Job(self.folder / f"uninterrupted-{ranks}.txt", command).end()
            assert ended.code == 0, ended.output
        return directory

    def training(
        self, ranks: int, settings: dict[str, Any], *program: str | Path
    ) -> list[str | Path]:
        """The command that trains, by main.py unless another program is named."""
        words = flags({"data_dir": self.data, **settings})
        return on_ranks(ranks, "python3", *(program or ["main.py"]), *words)

    def copy(self, ranks: int, step: int, directory: Path) -> Path:
        """Puts the uninterrupted run's checkpoint of a step into a folder."""
        name = checkpoint_name(step)
        return Path(shutil.copytree(self.uninterrupted(ranks) / name, directory / name))
