"""Rows in SparseOperationKit's hash table on GPUs: of all ids, or of those alone that occur."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed import sharding
from dlrm.embedding import sok_storage
from dlrm.embedding.row_storage import RowLayout, Sightings

MOST_WIDTH = 1024  # SOK starts one thread per value
FIRST_ROWS = 1 << 20  # a table grows from here


def dynamic_capacity(rows: int) -> int:
    """The most rows that a dynamic table is given room for: a power of two, as SOK requires.

    This is at least twice the rows. Keys are hashed to buckets of 128, and a bucket that overflows
    loses a row. With at most 64 keys expected in each, none does.
    """
    return 1 << max(10, (2 * rows - 1).bit_length())


class SokDynamicStorage:
    """A `RowStorage` in a `sok.DynamicVariable`: a hash table that grows, addressed by key.

    The table lies on the GPU and, beyond `gpu_gib`, in the host's memory. A key's row is created
    when it is first read. SOK fills it with NaN, which stands for the initial value until an update
    writes the row, so that key and seed alone determine the weights.

    Args:
        layout: The columns of a stored row.
        rank: The rank that owns the rows.
        size: Number of ranks.
        gpu_gib: GiB of rows that are kept on the GPU.
        most_rows: Number of rows that there is room for; by default all that this rank owns.

    Attributes:
        layout: The layout that was given.
        key_dtype: int64, the only type that SOK's table on host and GPU takes.

    Raises:
        ValueError: SOK cannot be used (see `sok_storage.load`), or the rows are too wide for it.
    """

    key_dtype = tf.int64
    shared = 0

    def __init__(
        self,
        layout: RowLayout,
        rank: int,
        size: int,
        *,
        gpu_gib: int,
        most_rows: int | None = None,
    ) -> None:
        if layout.width > MOST_WIDTH:
            raise ValueError(
                f"--embedding=sok_dynamic: expected at most {MOST_WIDTH} values in a row, "
                f"found {layout.table.width} (--embedding_dim) and {layout.width} with the state "
                "of the optimizer; set --embedding=sok, or another --optimizer"
            )
        self.layout = layout
        self._rank, self._size = rank, size
        self._local_rows = sharding.local_rows(layout.table.rows, rank, size)
        self._exported: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
        self._sok = sok_storage.load()
        most = dynamic_capacity(self._local_rows if most_rows is None else most_rows)
        self._table = self._sok.DynamicVariable(
            dimension=layout.width,
            initializer="nan",
            var_type="hybrid",
            trainable=False,
            name="table",
            init_capacity=min(FIRST_ROWS, most),
            max_capacity=most,
            max_hbm_for_vectors=gpu_gib,
        )

    def addresses(self, keys: tf.Tensor) -> tf.Tensor:
        """The keys themselves."""
        return keys

    def read(self, addresses: tf.Tensor) -> tf.Tensor:
        """See `RowStorage.read`."""
        # SOK starts one block of threads per key, and starting no block is an error in CUDA.
        return tf.cond(
            tf.size(addresses) > 0,
            lambda: self._initialized(self._table.sparse_read(addresses), addresses),
            lambda: tf.zeros([0, self.layout.width]),
        )

    def fetch(self, keys: tf.Tensor) -> tf.Tensor:
        """See `RowStorage.fetch`."""
        return self.read(keys)

    def _initialized(self, stored: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """Rows [n, S] with the initial values wherever SOK has NaN."""
        return tf.where(tf.math.is_nan(stored), self.layout.initial(keys), stored)

    def write(self, addresses: tf.Tensor, stored: tf.Tensor) -> None:
        """See `RowStorage.write`."""
        tf.cond(
            tf.size(addresses) > 0,
            lambda: tf.group(
                self._table.scatter_update(tf.IndexedSlices(stored, addresses)),
            ),
            tf.no_op,
        )

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """See `RowStorage.read_rows`; ranges are read in order, from the first row to the last."""
        keys, stored = self._export(first)
        wanted = sharding.key_of(np.arange(first, last, dtype=np.int64), self._rank, self._size)
        rows = self.layout.initial(tf.constant(wanted)).numpy()
        ends = [sharding.key_of(row, self._rank, self._size) for row in (first, last)]
        begin, end = np.searchsorted(keys, ends)
        local = sharding.local_row_of(keys[begin:end], self._size)
        rows[local - first] = stored[begin:end]
        self._release(last == self._local_rows)
        return rows

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """See `RowStorage.write_rows`; rows that hold their initial value take no room."""
        self._assign(sharding.key_of(rows, self._rank, self._size), stored)

    def _export(self, first: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The keys of all rows that were written, ascending, and the rows.

        SOK can only export the table as a whole. So the first range of rows copies all of it to the
        host's memory, and the last one releases the copy.
        """
        if first == 0 or self._exported is None:
            keys, stored = (tensor.numpy() for tensor in self._sok.export(self._table))
            order = np.argsort(keys)
            order = order[~np.isnan(stored[order]).any(axis=1)]
            self._exported = keys[order], stored[order]
        return self._exported

    def _release(self, done: bool) -> None:
        if done:
            self._exported = None

    def _assign(self, keys: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """Overwrites rows of keys [n] with those [n, S] that differ from their initial values."""
        changed = (stored != self.layout.initial(tf.constant(keys)).numpy()).any(axis=1)
        if changed.any():
            self._sok.assign(self._table, tf.constant(keys[changed]), tf.constant(stored[changed]))


class SokOccurringRows(SokDynamicStorage):
    """`OccurringRows` in a `sok.DynamicVariable`, with room for a number of rows.

    Ids then need no dictionary. Once the table is full, SOK makes room for an id by forgetting the
    one of its bucket of 128 that was not used for longest. As SOK has no lookup that leaves a table
    as it is, the ids of an evaluation take room as well, and are the first to make it again.

    SOK does not tell when a batch held an id. So of each the present step counts as the only one.
    """

    _step = 0

    def begin_step(self, step: int) -> None:
        """See `OccurringRows.begin_step`."""
        self._step = step

    def sightings(self) -> Sightings:
        """See `OccurringRows.sightings`; keys whose rows were never updated are left out."""
        keys = self._export(0)[0]
        counts = np.tile(np.array([1, self._step], np.int32), (len(keys), 1))
        return Sightings(keys, counts, len(keys))

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows [first, last) as `sightings` counts them; ranges are read in order."""
        keys, stored = self._export(first)
        self._release(last == len(keys))
        return stored[first:last]

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """Overwrites rows, int64 [n] as `sightings` counts them, with float32 [n, S]."""
        self._assign(self._export(0)[0][rows], stored)

    def clear(self) -> None:
        """See `OccurringRows.clear`."""
        keys = self._export(0)[0]
        self._release(True)
        if len(keys):
            unwritten = tf.fill([len(keys), self.layout.width], np.float32(np.nan))
            self._sok.assign(self._table, tf.constant(keys), unwritten)

    def put(self, sightings: Sightings, stored: NDArray[np.float32]) -> None:
        """See `OccurringRows.put`; keys without a row are left out."""
        self._assign(sightings.keys[: sightings.rows], stored)

    def read_shared(self) -> NDArray[np.float32]:
        """No rows, float32 [0, S]."""
        return np.empty((0, self.layout.width), np.float32)

    def write_shared(self, stored: NDArray[np.float32]) -> None:
        """Does nothing, as there are none."""
        assert not len(stored), "no rows are shared"
