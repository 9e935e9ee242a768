"""One system in a process of its own: it takes steps when told to, and waits without computing.

    python3 -m benchmarks.peers.worker NAME

It serves the commands of `SystemWorker`: the first line of standard input is the case, each further
one the numbers of the batches to train on.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from benchmarks.peers.case import CHECKED_SAMPLES, Trainable, TrainCase, checksum
from benchmarks.ranks import ROOT
from dlrm.distributed.host_memory import keep_freed_memory


class SystemKind(NamedTuple):
    """Where a system's code is.

    Attributes:
        title: The name that is printed.
        module: The module in this package; its `build` returns a `Trainable`.
        form: The argument of `build` beside the case and its batches.
        peer: Whether it runs in the peers' environment.
    """

    title: str
    module: str
    form: str
    peer: bool = True


PRODUCT, OURS = "product", "ours"
SYSTEMS = {
    PRODUCT: SystemKind("large products", "product", "", peer=False),
    OURS: SystemKind("ours", "ours", "", peer=False),
    "torch": SystemKind("PyTorch", "plain_torch", "bags"),
    "torch_tuned": SystemKind("PyTorch, tuned", "plain_torch", "tuned"),
    "torch_compiled": SystemKind("PyTorch, tuned, compiled", "plain_torch", "compiled"),
    "torchrec": SystemKind("TorchRec", "torchrec_dlrm", ""),
    "keras_rs": SystemKind("keras-rs", "keras_rs_dlrm", "gather"),
    "keras_rs_skip": SystemKind("keras-rs, skip_gather", "keras_rs_dlrm", "skip_gather"),
}


def work(name: str) -> None:
    """Serves until standard input ends."""
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with contextlib.redirect_stdout(sys.stderr):
        case = TrainCase(**json.loads(sys.stdin.readline()))
        batches = case.batches()
        kind = SYSTEMS[name]
        module = importlib.import_module(f"benchmarks.peers.{kind.module}")
        system: Trainable = module.build(case, batches, kind.form)
        keep_freed_memory()  # as ours does
        ids = batches[0].ids[:CHECKED_SAMPLES]
        ready = {
            "versions": system.versions,
            "checksum": checksum(batches),
            "batches": len(batches),
            "rows": system.rows(ids).tolist(),
        }
        print(json.dumps(ready), file=answers)
        idle_since = time.perf_counter(), time.process_time()
        for line in sys.stdin:
            command = json.loads(line)
            begin = time.perf_counter(), time.process_time()
            seconds, losses = system.train(command["batches"])
            end = time.perf_counter(), time.process_time()
            answer = {
                "seconds": seconds,
                "losses": losses,
                "cpu": end[1] - begin[1],
                "idle": (begin[0] - idle_since[0], begin[1] - idle_since[1]),
                "rows": system.rows(ids).tolist() if command["rows"] else [],
            }
            idle_since = time.perf_counter(), time.process_time()
            print(json.dumps(answer), file=answers)


class SystemWorker:
    """A system's process, seen from the benchmark.

    Args:
        name: The system, one of `SYSTEMS`.
        case: What to train.
        python: The interpreter.

    Attributes:
        ready: What it said when it was built: `versions`, `checksum` and number of `batches`, and
            the first values of the checked `rows`.

    Raises:
        ValueError: It ended; the message holds the last line that it wrote.
    """

    def __init__(self, name: str, case: TrainCase, python: str) -> None:
        self._name = name
        self._process = subprocess.Popen(
            ["./hvd_wrapper.sh", python, "-m", "benchmarks.peers.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        )
        self._idle = [0.0, 0.0]
        try:
            self.ready = self._ask(asdict(case))
        except ValueError:
            self.close()
            raise

    def train(self, batches: Sequence[int], rows: bool = False) -> Any:
        """Takes a step on each of the batches; the answer of `work`."""
        answer = self._ask({"batches": list(batches), "rows": rows})
        self._idle = [total + more for total, more in zip(self._idle, answer["idle"])]
        return answer

    @property
    def idle_share(self) -> float:
        """Processor seconds per second in which it had nothing to do: 0, if it only waited."""
        seconds, cpu = self._idle
        return cpu / seconds

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            lines = self._process.stderr.read().strip().splitlines() or ["it wrote nothing"]
            raise ValueError(f"{SYSTEMS[self._name].title} ended: {lines[-1]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    work(sys.argv[1])
