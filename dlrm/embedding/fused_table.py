"""The fused table: its size, and the value that each row starts with.

Arithmetic on keys alone, independent of exchange, storage and training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed import sharding
from dlrm.formats.splitmix64 import GAMMA, ROUNDS


@dataclass(frozen=True)
class FusedTable:
    """Several tables laid one behind the other.

    Attributes:
        vocab_sizes: Number of rows of each table.
        width: Number of values in a row.
        seed: Together with the key it determines a row's first value, so that any number of ranks
            starts from the same weights.
        initial_range: First values are uniform in [-initial_range, initial_range); None for
            1 / sqrt(n), where the row's own table has n rows.
    """

    vocab_sizes: tuple[int, ...]
    width: int
    seed: int
    initial_range: float | None = None

    @property
    def rows(self) -> int:
        """Number of rows of all tables together."""
        return sum(self.vocab_sizes)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The key of each table's id 0, int64 [tables]."""
        return sharding.key_offsets(self.vocab_sizes)

    def initial(self, keys: tf.Tensor) -> tf.Tensor:
        """First values of rows, uniform in the range that `initial_range` describes.

        Args:
            keys: int64 [n].

        Returns:
            float32 [n, width].
        """
        columns = tf.range(self.width, dtype=tf.int64)
        counters = tf.cast(keys[:, None] * self.width + columns, tf.uint64)
        values = uniform(counters, self.seed)
        if self.initial_range is not None:
            return values * self.initial_range
        ends = tf.constant(np.cumsum(self.vocab_sizes, dtype=np.int64))
        bounds = tf.constant(1.0 / np.sqrt(np.maximum(self.vocab_sizes, 1)), tf.float32)
        bound = tf.gather(bounds, tf.searchsorted(ends, keys, side="right"))
        return values * bound[:, None]


def uniform(counters: tf.Tensor, seed: int) -> tf.Tensor:
    """Independent values in [-1, 1), each determined by its counter and the seed alone.

    The generator is SplitMix64, which gives its n-th output without computing the ones before.

    Args:
        counters: uint64, any shape.
        seed: Any integer.

    Returns:
        float32, the shape of `counters`.
    """
    start = tf.constant((seed * GAMMA * GAMMA) % 2**64, tf.uint64)
    state = start + (counters + tf.constant(1, tf.uint64)) * tf.constant(GAMMA, tf.uint64)
    for shift, factor in ROUNDS:
        high = tf.bitwise.right_shift(state, tf.constant(shift, tf.uint64))
        state = tf.bitwise.bitwise_xor(state, high) * tf.constant(factor, tf.uint64)
    # The upper 24 bits fill a float32's significand exactly.
    top = tf.cast(tf.bitwise.right_shift(state, tf.constant(40, tf.uint64)), tf.float32)
    return top * 2.0**-23 - 1.0
