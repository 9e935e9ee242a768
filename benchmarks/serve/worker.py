"""One contender in a process of its own: it opens the model, scores when told to, and reports.

TensorFlow, torch and ONNX Runtime disturb each other's threads within a process. Only one worker
scores at a time; the others wait for a line on their standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.ranks import ROOT
from benchmarks.serve.contender import THREADS, Score
from benchmarks.serve.models import source
from benchmarks.shapes import SHAPES

SQUARE = 2048  # rows and columns of the large product's factors
CHECKED = 64  # samples whose logits are compared
_DISTINCT = 16  # batches of a size that are scored in turn
_FEWEST_CALLS = 5


def open_scorer(folder: Path, hot_share: float = 1.0) -> dict[str, Score]:
    """Opens the artifact with the project's scorer."""
    from serving.scorer import Scorer

    return {"": Scorer.open(folder, threads=THREADS, hot_share=hot_share).score}


def open_saved_model(folder: Path) -> dict[str, Score]:
    """Loads the artifact's SavedModel with plain TensorFlow."""
    import tensorflow as tf

    from serving.artifact import SAVED_MODEL

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    model = tf.saved_model.load(str(folder / SAVED_MODEL))
    signature = model.signatures["serving_default"]

    def score(dense: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
        return signature(dense=tf.constant(dense), ids=tf.constant(ids))["logits"].numpy()

    score.model = model  # type: ignore[attr-defined]  # a signature does not keep its variables
    return {"": score}


def open_product(folder: Path) -> dict[str, Score]:
    """Multiplies large matrices instead of scoring: the rate that bounds float32 products."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    square = tf.random.normal([SQUARE, SQUARE])
    multiply = tf.function(lambda: tf.matmul(square, square)[0, :1])
    return {"": lambda dense, ids: multiply().numpy()}


def _opener(kind: str) -> Callable[[Path], dict[str, Score]]:
    from benchmarks.serve import peers

    return {
        "scorer": open_scorer,
        "saved_model": open_saved_model,
        "product": open_product,
        "torch": peers.open_torch,
        "onnx float32": peers.open_onnx,
        "onnx int8": peers.open_quantised_onnx,
    }[kind]


def resident() -> int:
    """The resident bytes of this process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def _seconds_of_calls(
    score: Score, batches: list[tuple[NDArray[Any], NDArray[Any]]], seconds: float
) -> list[float]:
    """Scores batches in turn for a while; returns the seconds of each call."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < _FEWEST_CALLS:
        dense, ids = batches[len(times) % len(batches)]
        begin = time.perf_counter()
        score(dense, ids)
        times.append(time.perf_counter() - begin)
    return times


def work(kind: str, shape: str, folder: Path) -> None:
    """Serves the commands of `Worker` until standard input ends."""
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with contextlib.redirect_stdout(sys.stderr):
        forms = _opener(kind)(folder)
        samples = source(SHAPES[shape], 1 << 20)
        chosen: dict[int, str] = {}
        print(json.dumps({"resident": resident()}), file=answers)
        batches: dict[int, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
        for line in sys.stdin:
            size, seconds = json.loads(line)
            if size not in batches:
                batches[size] = [
                    samples.read(i * size, (i + 1) * size)[:2] for i in range(_DISTINCT)
                ]
                # The first calls make buffers, or compile.
                warm = {
                    name: _seconds_of_calls(form, batches[size], seconds)[_FEWEST_CALLS // 2 :]
                    for name, form in forms.items()
                }
                chosen[size] = min(warm, key=lambda name: float(np.median(warm[name])))
            score = forms[chosen[size]]
            times = np.array(_seconds_of_calls(score, batches[size], seconds))
            answer = {
                "form": chosen[size],
                "median": float(np.median(times)),
                "p99": float(np.quantile(times, 0.99)),
                "resident": resident(),
                "logits": score(*samples.read(0, CHECKED)[:2]).tolist(),
            }
            print(json.dumps(answer), file=answers)


class Worker:
    """A contender's process, seen from the benchmark.

    Args:
        kind: The kind of the contender.
        shape: The name of the shape.
        folder: The artifact.

    Attributes:
        startup: Seconds until it was ready to score.
        resident: Its resident bytes then.

    Raises:
        ValueError: It ended; the message holds the end of what it wrote.
    """

    def __init__(self, kind: str, shape: str, folder: Path) -> None:
        self._name = f"{kind} of {folder}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serve", "--work", kind, shape, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": str(THREADS)},
        )
        begin = time.perf_counter()
        self.resident = self._answer()["resident"]
        self.startup = time.perf_counter() - begin

    def score(self, size: int, seconds: float) -> dict[str, Any]:
        """Scores batches of a size for a while; returns the worker's figures."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([size, seconds]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        assert self._process.stderr
        line = self._process.stdout.readline()
        if not line:
            lines = self._process.stderr.read()[-2000:]
            raise ValueError(f"{self._name} ended; its last lines are:\n{lines}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def running(kind: str, shape: str, folder: Path) -> Iterator[Worker]:
    """Starts a contender, and ends it with the context."""
    worker = Worker(kind, shape, folder)
    try:
        yield worker
    finally:
        worker.close()
