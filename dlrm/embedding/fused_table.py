"""The fused table: which key an id has, which rank owns it, and the value it starts with.

Knows arithmetic on keys only: no exchange, no training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

BAD_IDS = ("error", "clip", "zero")
INITIAL_CHUNK = 1 << 22  # values initialised at a time: 16 MiB of float32


@dataclass(frozen=True)
class FusedTable:
    """Several tables laid one behind the other.

    Attributes:
        vocab_sizes: rows of each table.
        width: values in a row.
        seed: with the key alone it decides a row's first value, so that any number of ranks
            starts from the same weights.
    """

    vocab_sizes: tuple[int, ...]
    width: int
    seed: int

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(self.vocab_sizes)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 [tables]: the key of each table's id 0."""
        return np.concatenate([[0], np.cumsum(self.vocab_sizes[:-1], dtype=np.int64)])

    def local_rows(self, rank: int, size: int) -> int:
        """Rows that the rank owns: the keys k with k % size == rank."""
        return (self.rows - rank + size - 1) // size

    def initial(self, keys: tf.Tensor) -> tf.Tensor:
        """First values of rows: U(-1/sqrt(n), 1/sqrt(n)), n the rows of the key's own table.

        Args:
            keys: int64 [n].

        Returns:
            float32 [n, width].
        """
        ends = tf.constant(np.cumsum(self.vocab_sizes, dtype=np.int64))
        bounds = tf.constant(1.0 / np.sqrt(np.maximum(self.vocab_sizes, 1)), tf.float32)
        bound = tf.gather(bounds, tf.searchsorted(ends, keys, side="right"))
        columns = tf.range(self.width, dtype=tf.int64)
        counters = tf.cast(keys[:, None] * self.width + columns, tf.uint64)
        return uniform(counters, self.seed) * bound[:, None]


def uniform(counters: tf.Tensor, seed: int) -> tf.Tensor:
    """Independent values in [-1, 1), each decided by its counter and the seed alone.

    The generator is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
    Generators, 2014), whose n-th output can be had without the ones before it.

    Args:
        counters: uint64, any shape.
        seed: any integer.

    Returns:
        float32, the shape of `counters`.
    """

    def mixed(value: tf.Tensor, shift: int, factor: int) -> tf.Tensor:
        high = tf.bitwise.right_shift(value, tf.constant(shift, tf.uint64))
        return tf.bitwise.bitwise_xor(value, high) * tf.constant(factor, tf.uint64)

    golden = 0x9E3779B97F4A7C15
    start = tf.constant((seed * golden * golden) % 2**64, tf.uint64)
    state = start + (counters + tf.constant(1, tf.uint64)) * tf.constant(golden, tf.uint64)
    state = mixed(mixed(state, 30, 0xBF58476D1CE4E5B9), 27, 0x94D049BB133111EB)
    state = tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, tf.constant(31, tf.uint64)))
    # The upper 24 bits fill a float32's significand exactly.
    top = tf.cast(tf.bitwise.right_shift(state, tf.constant(40, tf.uint64)), tf.float32)
    return top * 2.0**-23 - 1.0


def local_table(table: FusedTable, rank: int, size: int) -> tf.Variable:
    """This rank's rows, initialised.

    Returns:
        float32 variable [local rows, width]; local row r is key r * size + rank.
    """
    # At least one row, so that a rank without any still has a table to look up in.
    rows = max(table.local_rows(rank, size), 1)
    variable = tf.Variable(tf.zeros([rows, table.width]), trainable=False, name="table")
    fill(variable, table, rank, size)
    return variable


def fill(variable: tf.Variable, table: FusedTable, rank: int, size: int) -> None:
    """Initialises a rank's rows chunk by chunk, so that nothing beside them is ever held.

    Args:
        variable: float32 [local rows, width] or longer.
        table: what it is a share of.
        rank: whose share it is.
        size: number of ranks.
    """
    rows = table.local_rows(rank, size)
    chunk = max(1, INITIAL_CHUNK // table.width)

    @tf.function
    def fill_chunk(first: tf.Tensor, last: tf.Tensor) -> None:
        local = tf.range(first, last)
        tf.raw_ops.ResourceScatterUpdate(
            resource=variable.handle, indices=local, updates=table.initial(local * size + rank)
        )

    for first in range(0, rows, chunk):
        fill_chunk(tf.constant(first, tf.int64), tf.constant(min(first + chunk, rows), tf.int64))


def capacity(rows: int) -> int:
    """The most rows that a dynamic table is given room for: a power of two, as SOK wants.

    Twice the rows: keys are hashed to buckets of 128, and one that overflows loses a row. With 64
    keys expected in each, none does.
    """
    return 1 << max(10, (2 * rows - 1).bit_length())
