"""Rows kept by NVIDIA's SparseOperationKit 2.x (SOK). The only module that may import it.

SOK provides its tables and its kernel that partitions keys; routing, exchange and update are those
of `ShardedEmbedding`. SOK's own `all2all_dense_embedding` and optimizers find the routes again on
every call, read every key instead of every distinct row, and update rows through `IndexedSlices`.
So routes, bad ids, types, checkpoints and results are the same with every storage.

SOK has kernels for GPUs only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed import sharding
from dlrm.embedding.partition import Partition, by_owner, inverse, position_dtype
from dlrm.embedding.row_storage import RowLayout
from dlrm.embedding.variable_storage import VariableStorage

# `dist_select` keeps 12 bytes for each key of 32 threads, 8 warps and all ranks in shared memory;
# with more ranks it would write beyond the 92 KiB that the smallest of SOK's GPUs has free.
SELECT_RANKS = 24
MOST_DYNAMIC_WIDTH = 1024  # SOK starts one thread per value
FIRST_ROWS = 1 << 20  # a dynamic table grows from here


def load() -> Any:
    """Imports SOK.

    Raises:
        ValueError: This process has no GPU for it, or it cannot be imported.
    """
    if not tf.config.list_logical_devices("GPU"):
        raise ValueError(
            "--embedding=sok: expected a GPU, found none: SparseOperationKit has no kernels for "
            "CPUs; set --embedding=alltoall"
        )
    try:
        import sparse_operation_kit as sok
    except Exception as error:  # a missing library is TensorFlow's OpError, or worse
        raise ValueError(
            f"--embedding=sok: SparseOperationKit cannot be imported ({_first_line(error)}); "
            "run `make sok` and use the python3 of its environment, or set --embedding=alltoall"
        ) from error
    return sok


def operations() -> list[str]:
    """The names of SOK's operations, with or without a GPU.

    Raises:
        Exception: Whatever keeps SOK from being imported.
    """
    from sparse_operation_kit import raw_ops
    from tensorflow.python.framework import op_def_registry

    return [name for name in dir(raw_ops) if op_def_registry.get(name)]


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def select_by_owner(keys: tf.Tensor, size: int) -> Partition:
    """Partitions keys with SOK's kernel.

    The order in which it leaves the keys of one owner differs between runs, so sums of float32 do
    too, in their last bits.
    """
    if size > SELECT_RANKS:
        return by_owner(keys, size)
    keys, order, sent = load().raw_ops.dist_select(keys, num_splits=size)
    order = tf.cast(order, position_dtype())
    return Partition(keys, order, inverse(order), sent)


def static_storage(layout: RowLayout, rank: int, size: int) -> VariableStorage:
    """A storage in a `sok.Variable`, whose row r on this rank is local row r.

    Raises:
        ValueError: SOK cannot be used; see `load`.
    """
    variable = load().DistributedVariable(
        # At least one row per rank, as in `VariableStorage`.
        shape=[max(layout.table.rows, size), layout.width],
        initializer=tf.zeros,
        dtype=tf.float32,
        trainable=False,
        name="table",
        global_gpu_id=rank,
        num_gpus=size,
    )
    return VariableStorage(layout, rank, size, variable)


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

    Attributes:
        layout: The layout that was given.
        key_dtype: int64, the only type that SOK's table on host and GPU takes.

    Raises:
        ValueError: SOK cannot be used (see `load`), or the rows are too wide for it.
    """

    key_dtype = tf.int64
    shared = 0

    def __init__(self, layout: RowLayout, rank: int, size: int, *, gpu_gib: int) -> None:
        if layout.width > MOST_DYNAMIC_WIDTH:
            raise ValueError(
                f"--embedding=sok_dynamic: expected at most {MOST_DYNAMIC_WIDTH} values in a row, "
                f"found {layout.table.width} (--embedding_dim) and {layout.width} with the state "
                "of the optimizer; set --embedding=sok, or another --optimizer"
            )
        self.layout = layout
        self._rank, self._size = rank, size
        self._local_rows = sharding.local_rows(layout.table.rows, rank, size)
        self._exported: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
        self._sok = load()
        most = dynamic_capacity(self._local_rows)
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
        """See `RowStorage.read_rows`; ranges are read in order, from the first row to the last.

        SOK can only export the table as a whole. So the first range copies all keys and rows to the
        host's memory, and the last range releases them.
        """
        if first == 0 or self._exported is None:
            keys, stored = (tensor.numpy() for tensor in self._sok.export(self._table))
            order = np.argsort(keys)
            self._exported = keys[order], stored[order]
        keys, stored = self._exported
        wanted = sharding.key_of(np.arange(first, last, dtype=np.int64), self._rank, self._size)
        rows = self.layout.initial(tf.constant(wanted)).numpy()
        ends = [sharding.key_of(row, self._rank, self._size) for row in (first, last)]
        begin, end = np.searchsorted(keys, ends)
        updated = ~np.isnan(stored[begin:end]).any(axis=1)
        local = sharding.local_row_of(keys[begin:end][updated], self._size)
        rows[local - first] = stored[begin:end][updated]
        if last == self._local_rows:
            self._exported = None
        return rows

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """See `RowStorage.write_rows`; rows that hold their initial value take no room."""
        keys = sharding.key_of(rows, self._rank, self._size)
        changed = (stored != self.layout.initial(tf.constant(keys)).numpy()).any(axis=1)
        if changed.any():
            self._sok.assign(self._table, tf.constant(keys[changed]), tf.constant(stored[changed]))
