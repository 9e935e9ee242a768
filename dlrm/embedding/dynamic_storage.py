"""Rows in the host's memory for the ids that occur, without a row for every id that may.

A hash table of the project's operations for CPUs (`dlrm/cpu_ops/row_table.h`) knows the row of each
key. A key's row is created when a training batch first holds the key, or after a number of such
steps; and it can be dropped after a number of steps without it. Ids then need no dictionary: a
table may have 2^31 - 1 ids, of which only those that occur take memory.

Until it has a row of its own, an id has that of its table, which it shares with all others like it.
Shared rows are the same on every rank; the step adds up their gradients over ranks.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm import cpu_ops
from dlrm.embedding.row_storage import RowLayout, Sightings


class DynamicStorage:
    """`OccurringRows` in a hash table in the host's memory.

    Args:
        layout: The columns of a stored row.
        admit_after: Number of steps whose batches hold an id before it gets a row of its own.
        evict_after: Number of steps without an id after which it is forgotten, and its row with
            it; 0 to keep all.

    Attributes:
        layout: As given.
        shared: Number of rows that are shared, one for each table; 0 if no id waits for its own.
            They have the addresses 0 to `shared` - 1.
        handle: The resource that holds the rows.

    Raises:
        ValueError: The operations for CPUs are not built.
    """

    def __init__(self, layout: RowLayout, *, admit_after: int = 0, evict_after: int = 0) -> None:
        try:
            self._operations = cpu_ops.load()
        except OSError as error:
            raise ValueError(f"--embedding=dynamic: {error}") from None
        self.layout = layout
        self.shared = len(layout.table.vocab_sizes) if admit_after else 0
        with tf.device("CPU"):
            self.handle = self._operations.row_table(
                width=layout.width,
                shared=self.shared,
                admit_after=admit_after,
                evict_after=evict_after,
            )
            self._step = tf.Variable(0, dtype=tf.int32, trainable=False, name="step")
            self._ends = tf.constant(np.cumsum(layout.table.vocab_sizes, dtype=np.int64))
        self._listed: tuple[NDArray[np.int32], Sightings] | None = None
        self._begin_shared_rows()

    @property
    def key_dtype(self) -> tf.DType:
        """See `RowStorage`."""
        return tf.int32 if self.layout.table.rows < 2**31 else tf.int64

    def begin_step(self, step: int) -> None:
        """See `OccurringRows.begin_step`."""
        self._step.assign(step)

    def addresses(self, keys: tf.Tensor) -> tf.Tensor:
        """The rows of distinct keys of a training batch, which counts for each of them."""
        rows, fresh, fresh_keys = self._operations.sight_keys(
            self.handle, keys, self._ends, self._step
        )
        self.write(fresh, self.layout.initial(fresh_keys))
        return rows

    def read(self, addresses: tf.Tensor) -> tf.Tensor:
        """See `RowStorage.read`."""
        _, stored = self._operations.read_rows(
            self.handle, addresses, tf.zeros([0], tf.int32), width=1, keep=True
        )
        return tf.ensure_shape(stored, [None, self.layout.width])

    def fetch(self, keys: tf.Tensor) -> tf.Tensor:
        """See `RowStorage.fetch`. A key without a row has its table's, or its initial values."""
        found = self._operations.find_keys(self.handle, keys, self._ends, self._step)
        if self.shared:
            return self.read(found)
        known, unknown = tf.where(found >= 0), tf.where(found < 0)  # int64 [n, 1]
        shape = tf.constant([0, self.layout.width], tf.int64) + [tf.size(keys, tf.int64), 0]
        stored = tf.scatter_nd(known, self.read(tf.gather_nd(found, known)), shape)
        initial = self.layout.initial(tf.cast(tf.gather_nd(keys, unknown), tf.int64))
        return tf.tensor_scatter_nd_update(stored, unknown, initial)

    def write(self, addresses: tf.Tensor, stored: tf.Tensor) -> None:
        """See `RowStorage.write`."""
        self._operations.write_rows(self.handle, addresses, stored)

    def sightings(self) -> Sightings:
        """See `OccurringRows.sightings`."""
        keys, rows, seen, last = (
            tensor.numpy() for tensor in self._operations.list_keys(self.handle)
        )
        order = np.lexsort((keys, rows < 0))
        counts = np.stack([seen[order], last[order]], axis=1)
        found = Sightings(keys[order], counts, int(np.count_nonzero(rows >= 0)))
        self._listed = rows[order], found
        return found

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """The rows of keys [first, last) of the `sightings` made last, float32 [n, S]."""
        assert self._listed is not None, "rows are read in the order of `sightings`"
        rows: NDArray[np.float32] = self.read(tf.constant(self._listed[0][first:last])).numpy()
        return rows

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """Overwrites rows, int64 [n] as `read_rows` counts them, with float32 [n, S]."""
        assert self._listed is not None, "rows are counted in the order of `sightings`"
        self.write(tf.constant(self._listed[0][rows]), tf.constant(stored))

    def clear(self) -> None:
        """See `OccurringRows.clear`."""
        self._operations.clear_keys(self.handle)
        self._begin_shared_rows()

    def put(self, sightings: Sightings, stored: NDArray[np.float32]) -> None:
        """See `OccurringRows.put`."""
        keys, counts, rows = sightings
        addresses = self._operations.put_keys(
            self.handle, keys, counts[:, 0], counts[:, 1], np.arange(len(keys)) < rows
        )
        self.write(addresses[:rows], stored)

    def read_shared(self) -> NDArray[np.float32]:
        """See `OccurringRows.read_shared`."""
        rows: NDArray[np.float32] = self.read(tf.range(self.shared)).numpy()
        return rows

    def write_shared(self, stored: NDArray[np.float32]) -> None:
        """See `OccurringRows.write_shared`."""
        self.write(tf.range(self.shared), stored)

    def _begin_shared_rows(self) -> None:
        """Gives each shared row the initial values of its table's first key."""
        if self.shared:
            first = tf.constant(self.layout.table.offsets)
            self.write(tf.range(self.shared), self.layout.initial(first))
