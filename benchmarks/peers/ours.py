"""This project as a system: what `main.py` runs with a preset and the flags of `make train`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from benchmarks.peers.case import DENSE, ROWS, Floats, TrainCase
from benchmarks.peers.shipped import shipped_config
from dlrm import embedding
from dlrm.data import Batch, Batches, Data, open_split
from dlrm.train.build import build_trainer, join
from dlrm.train.callback import Callback
from model import build_model

_BLOCK = 1 << 20  # rows that are computed at a time


class _LoopTimes(Callback):
    """Notes the seconds and the loss of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._last = time.perf_counter()

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Called after each step, which has ended because its loss is known."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self.losses.append(loss)
        self._last = now


class OurSystem:
    """The trainer of a run on one rank.

    Args:
        case: What to train.
        batches: The batches.

    Attributes:
        versions: See `Trainable.versions`.
    """

    def __init__(self, case: TrainCase, batches: Sequence[Batch]) -> None:
        self.versions = f"TensorFlow {tf.__version__}"
        self._batches = batches
        config = shipped_config(case)
        collective = join(config)
        backend, _ = embedding.choose(config.embedding.embedding)
        source = open_split(Path(case.folder, "data"), False)
        planned = Batches(source, case.batch, 0, 1, drop_remainder=True)
        data = Data(planned, planned, case.num_dense, tuple(case.vocab_sizes), {})
        self._trainer = build_trainer(config, backend, collective, data, build_model)

    def train(self, batches: Sequence[int]) -> tuple[list[float], list[float]]:
        """See `Trainable.train`."""
        times = _LoopTimes()
        self._trainer.train([[self._batches[number] for number in batches]], [], times)
        return times.seconds, times.losses

    def rows(self, ids: NDArray[np.int32]) -> Floats:
        """See `Trainable.rows`."""
        tables = self._trainer.step.embedding
        return np.concatenate(tables.lookup(tables.route(tf.constant(ids))).vectors, axis=1)

    def write_weights(self, folder: Path) -> None:
        """Writes the first weights for the other systems."""
        step = self._trainer.step
        np.savez(folder / DENSE, **{name: weight.numpy() for name, weight in step.dense.items()})
        table = step.embedding.table
        rows = np.lib.format.open_memmap(folder / ROWS, "w+", np.float32, (table.rows, table.width))
        for first in range(0, table.rows, _BLOCK):
            last = min(first + _BLOCK, table.rows)
            rows[first:last] = step.embedding.read_rows(first, last)


def build(case: TrainCase, batches: Sequence[Batch], form: str) -> OurSystem:
    """Builds the trainer and writes its first weights."""
    system = OurSystem(case, batches)
    system.write_weights(Path(case.folder))
    return system
