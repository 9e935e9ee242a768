"""Rows in a variable: TensorFlow's own, or any other with its resource handle.

Row r of the variable is local row r.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed import sharding
from dlrm.embedding.partition import on_gpu
from dlrm.embedding.row_storage import RowLayout

INITIAL_CHUNK = 1 << 22  # values initialized at a time: 16 MiB of float32


class VariableStorage:
    """A `RowStorage` in a variable.

    Args:
        layout: The columns of a stored row.
        rank: The rank that owns the rows.
        size: Number of ranks.
        variable: float32 [local rows or more, S], where the rows are kept; by default a new
            `tf.Variable`. Its values are initialized here.

    Attributes:
        variable: As given.
    """

    shared = 0

    def __init__(
        self, layout: RowLayout, rank: int, size: int, variable: tf.Variable | None = None
    ) -> None:
        self.layout = layout
        self._size = size
        if variable is None:
            # At least one row, so that a rank that owns none still has a table to look up in.
            rows = max(sharding.local_rows(layout.table.rows, rank, size), 1)
            variable = tf.Variable(tf.zeros([rows, layout.width]), trainable=False, name="table")
        self.variable = variable
        _fill(variable, layout, rank, size)

    @property
    def key_dtype(self) -> tf.DType:
        """See `RowStorage`; on CPUs int32 halves the bytes of a key wherever it suffices."""
        return tf.int32 if self.layout.table.rows < 2**31 and not on_gpu() else tf.int64

    def addresses(self, keys: tf.Tensor) -> tf.Tensor:
        """The keys' local rows."""
        return sharding.local_row_of(keys, self._size) if self._size > 1 else keys

    def read(self, addresses: tf.Tensor) -> tf.Tensor:
        """See `RowStorage.read`."""
        return tf.gather(self.variable, addresses)

    def fetch(self, keys: tf.Tensor) -> tf.Tensor:
        """See `RowStorage.fetch`."""
        return self.read(self.addresses(keys))

    def write(self, addresses: tf.Tensor, stored: tf.Tensor) -> None:
        """See `RowStorage.write`."""
        tf.raw_ops.ResourceScatterUpdate(
            resource=self.variable.handle, indices=addresses, updates=stored
        )

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """See `RowStorage.read_rows`."""
        # A gather, because any other way of reading makes TensorFlow copy the whole variable.
        rows = tf.gather(self.variable, tf.range(first, last, dtype=tf.int64))
        return np.asarray(memoryview(rows)) if last > first else rows.numpy()

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """See `RowStorage.write_rows`."""
        self.write(rows, stored)


def _fill(variable: tf.Variable, layout: RowLayout, rank: int, size: int) -> None:
    """Initializes a rank's rows in chunks, so that little additional memory is used."""
    rows = sharding.local_rows(layout.table.rows, rank, size)
    chunk = max(1, INITIAL_CHUNK // layout.width)

    @tf.function(autograph=False)
    def fill_chunk(first: tf.Tensor, last: tf.Tensor) -> None:
        local = tf.range(first, last)
        values = layout.initial(sharding.key_of(local, rank, size))
        tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=local, updates=values)

    for first in range(0, rows, chunk):
        fill_chunk(tf.constant(first, tf.int64), tf.constant(min(first + chunk, rows), tf.int64))
