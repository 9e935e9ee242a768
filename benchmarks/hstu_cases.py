"""What `benchmarks.hstu` measures, and the loop of a process that measures one contender.

NumPy only, so that a process without TensorFlow, or without PyTorch, can use it. All contenders
get the same sequences, weights and gradients from the same seed.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

THREADS = 2
FEWEST_CALLS = 2
EPSILON = 1e-6
_CHECKED = 8  # rows of the result that are compared

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HstuCase:
    """Sequences of uneven length, and the layers that they pass through.

    Attributes:
        kind: `train`, forward and backward pass; or `infer`, candidates after their histories.
        longest: Events of the longest history; the shortest has half as many.
        requests: Number of sequences.
        targets: Candidates of each.
        layers: Number of layers.
        width: Values of a position.
        heads: Number of heads.
        head_dim: Values of a head's query, key and value.
    """

    kind: str
    longest: int
    requests: int
    targets: int
    layers: int = 1
    width: int = 512
    heads: int = 4
    head_dim: int = 128

    @property
    def histories(self) -> NDArray[np.int64]:
        """The histories' lengths, evenly spread from the longest to half of it, int64 [B]."""
        steps = np.arange(self.requests) / max(1, self.requests - 1)
        return np.round(self.longest * (1 - steps / 2)).astype(np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The sequences' lengths, int64 [B]."""
        return self.histories + self.targets

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where the sequences begin, and the end, int64 [B + 1]."""
        return np.append(0, np.cumsum(self.lengths))

    @property
    def tokens(self) -> int:
        """Number of positions of all sequences."""
        return int(self.lengths.sum())

    @property
    def values(self) -> int:
        """Values of all heads together."""
        return self.heads * self.head_dim

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """Which positions are candidates, bool [L]."""
        place = np.arange(self.tokens)
        return place >= np.repeat(self.offsets[1:] - self.targets, self.lengths)

    def operations(self) -> int:
        """The floating-point operations of all products that are needed.

        A history sees its causal half, a candidate its history and itself. Training takes each
        product three times: once forward, and for the gradients of both factors. In inference, the
        last layer needs of histories only keys and values.
        """
        histories, rows = self.histories, self.tokens
        candidates = self.requests * self.targets
        causal = int((histories * (histories + 1) // 2).sum())
        seen = int(((histories + 1) * self.targets).sum())
        pair, column = 4 * self.values, 2 * self.width * self.values
        whole = rows * 7 * column + (causal + seen) * pair
        if self.kind == "train":
            return 3 * self.layers * whole
        last = candidates * 7 * column + (rows - candidates) * 2 * column + seen * pair
        return (self.layers - 1) * whole + last

    def mask(self, request: int) -> Floats:
        """What each position of a sequence sees, 0 or 1: float32 [n, n]."""
        place = np.arange(self.lengths[request])
        seen = place[:, None] >= place
        target = place >= self.histories[request]
        return (seen & (~target | (place[:, None] == place))).astype(np.float32)

    def data(self) -> tuple[Floats, Floats, list[dict[str, Floats]]]:
        """The positions [L, W], the gradient of the result [L, W], and each layer's weights."""
        numbers = np.random.default_rng(0)

        def normal(*shape: int, scale: float = 1.0) -> Floats:
            return numbers.standard_normal(shape, np.float32) * np.float32(scale)

        weights = [
            {
                "input_scale": 1 + normal(self.width, scale=0.1),
                "input_shift": normal(self.width, scale=0.1),
                "kernel": normal(self.width, 4 * self.values, scale=self.width**-0.5),
                "bias": normal(4 * self.values, scale=0.1),
                "scale": 1 + normal(self.values, scale=0.1),
                "shift": normal(self.values, scale=0.1),
                "output": normal(3 * self.values, self.width, scale=(3 * self.values) ** -0.5),
            }
            for _ in range(self.layers)
        ]
        x, gradient = (normal(self.tokens, self.width) for _ in range(2))
        return x, gradient, weights

    def scale(self) -> float:
        """The factor on attention's output: one over the longest sequence."""
        return 1 / (self.longest + self.targets)


# Builds what is timed. It returns a sample of its results, which all contenders must agree on.
OpenCase = Callable[[HstuCase, str], Callable[[], NDArray[Any]]]


def sample(rows: NDArray[Any], *gradients: NDArray[Any]) -> NDArray[np.float64]:
    """Some values of a result: its last rows, and the root mean square of each gradient."""
    roots = [np.sqrt(np.mean(np.square(g, dtype=np.float64))) for g in gradients]
    return np.concatenate([rows[-_CHECKED:, :_CHECKED].ravel(), roots]).astype(np.float64)


def memory(name: str) -> int:
    """Bytes of this process: `VmRSS`, resident now, or `VmHWM`, resident at most."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def work(open_case: OpenCase) -> None:
    """Serves the commands of `benchmarks.hstu` until standard input ends."""
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    idle = memory("VmRSS")
    opened: dict[tuple[Any, ...], Callable[[], NDArray[Any]]] = {}
    for line in sys.stdin:
        command = json.loads(line)
        case, form = HstuCase(**command["case"]), command["form"]
        key = (*asdict(case).values(), form)
        if key not in opened:
            opened[key] = open_case(case, form)
            opened[key]()  # makes buffers
        values = opened[key]()
        times: list[float] = []
        end = time.perf_counter() + command["seconds"]
        while time.perf_counter() < end or len(times) < FEWEST_CALLS:
            begin = time.perf_counter()
            opened[key]()
            times.append(time.perf_counter() - begin)
        answer = {
            "seconds": statistics.median(times),
            "peak": memory("VmHWM") - idle,
            "sample": values.tolist(),
        }
        print(json.dumps(answer), file=answers)
