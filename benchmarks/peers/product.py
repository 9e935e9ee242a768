"""The machine's rate in large float32 products, which bounds every step; measured as a system."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from benchmarks.peers.case import SQUARE, Floats, TrainCase
from dlrm.data import Batch
from dlrm.distributed import devices


class Products:
    """Multiplies large squares, as many at a time as there are cores.

    Attributes:
        versions: See `Trainable.versions`.
    """

    def __init__(self) -> None:
        self.versions = f"TensorFlow {tf.__version__}"
        devices.claim(0, core_per_operation=True)
        self._lanes = devices.lanes()
        squares = [tf.random.normal([SQUARE, SQUARE]) for _ in range(self._lanes)]
        self._multiply = tf.function(
            lambda: tf.add_n([tf.matmul(square, square)[0, 0] for square in squares])
        )
        self._multiply()

    def train(self, batches: Sequence[int]) -> tuple[list[float], list[float]]:
        """Multiplies once for each batch; the seconds are those of one product on all cores."""
        seconds = []
        for _ in batches:
            begin = time.perf_counter()
            self._multiply().numpy()
            seconds.append((time.perf_counter() - begin) / self._lanes)
        return seconds, []

    def rows(self, ids: NDArray[np.int32]) -> Floats:
        """There are none."""
        return np.zeros([0], np.float32)


def build(case: TrainCase, batches: Sequence[Batch], form: str) -> Products:
    """Builds the factors; they do not depend on the case."""
    return Products()
