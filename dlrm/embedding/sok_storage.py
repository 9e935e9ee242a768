"""Tables kept by NVIDIA's SparseOperationKit 2.x. The only module that may import it.

Both backends are the all-to-all of `embedding.alltoall` with SOK's tables and kernels in it, rather
than SOK's own `all2all_dense_embedding` and optimisers: these find the routes again on every call,
read every key instead of every distinct row, and update rows through `IndexedSlices`. So routes,
bad ids, types, checkpoints and results are those of the other backends.

SOK has kernels for GPUs only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.embedding.fused_table import capacity, fill
from dlrm.embedding.sharded import AllToAllEmbedding

# `dist_select` keeps 12 bytes for each key of 32 threads, 8 warps and all ranks in shared memory;
# with more ranks it would write beyond what the smallest of SOK's GPUs has, 92 KiB free.
SELECT_RANKS = 24
MOST_DYNAMIC_WIDTH = 1024  # SOK starts one thread a value
FIRST_ROWS = 1 << 20  # a dynamic table grows from here


def load() -> Any:
    """SOK.

    Raises:
        ValueError: this process has no GPU for it, or it cannot be imported.
    """
    if not tf.config.list_logical_devices("GPU"):
        raise ValueError(
            "--embedding=sok: expected a GPU, found none: SparseOperationKit has no kernels for "
            "CPUs; set --embedding=alltoall"
        )
    try:
        import sparse_operation_kit as sok
    except Exception as error:  # a missing library is an OpError of TensorFlow's, or worse
        raise ValueError(
            f"--embedding=sok: SparseOperationKit cannot be imported ({_first_line(error)}); "
            "run `make sok` and use the python3 of its environment, or set --embedding=alltoall"
        ) from error
    return sok


def operations() -> list[str]:
    """The names of SOK's operations, with or without a GPU.

    Raises:
        Exception: whatever keeps SOK from being imported.
    """
    from sparse_operation_kit import raw_ops
    from tensorflow.python.framework import op_def_registry

    return [name for name in dir(raw_ops) if op_def_registry.get(name)]


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


class SokEmbedding(AllToAllEmbedding):
    """A `sok.Variable`, whose row r is key r * size + rank, and SOK's partition of the keys.

    The order in which `dist_select` leaves the keys of one owner differs between runs, so sums of
    float32 do too, in their last bits.

    Args:
        arguments: those of `AllToAllEmbedding`.
        settings: likewise.

    Raises:
        ValueError: as `load`.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._sok = load()
        super().__init__(*arguments, **settings)

    def _new_table(self) -> tf.Variable:
        table, rank, size = self.table, self._collective.rank, self._collective.size
        variable = self._sok.DistributedVariable(
            # At least one row a rank, as in `local_table`.
            shape=[max(table.rows, size), table.width],
            initializer=tf.zeros,
            dtype=tf.float32,
            trainable=False,
            name="table",
            global_gpu_id=rank,
            num_gpus=size,
        )
        fill(variable, table, rank, size)
        return variable

    def _by_owner(self, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = self._collective.size
        if size > SELECT_RANKS:
            return super()._by_owner(keys)
        keys, order, sent = self._sok.raw_ops.dist_select(keys, num_splits=size)
        return keys, tf.cast(order, self._place_dtype), sent


class SokDynamicEmbedding(SokEmbedding):
    """A `sok.DynamicVariable`: a hash table of keys that grows, on the GPU and, beyond, the host.

    A key's row is made when it is first read. SOK fills it with NaN, which stands for the row's
    first value until an update writes it, so that key and seed alone decide the weights.

    Args:
        arguments: those of `AllToAllEmbedding`.
        gpu_gigabytes: of rows that the GPU keeps; the others lie in the host's memory.
        settings: as arguments.

    Raises:
        ValueError: as `load`, or rows too wide.
    """

    def __init__(self, *arguments: Any, gpu_gigabytes: int, **settings: Any) -> None:
        self._gpu_gigabytes = gpu_gigabytes
        self._exported: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
        super().__init__(*arguments, **settings)
        self._key_dtype = tf.int64  # the only one that SOK's table on host and GPU takes

    def _new_table(self) -> tf.Variable:
        table = self.table
        if table.width > MOST_DYNAMIC_WIDTH:
            raise ValueError(
                f"--embedding=sok_dynamic: expected --embedding_dim of {MOST_DYNAMIC_WIDTH} or "
                f"less, found {table.width}; set --embedding=sok"
            )
        rows = table.local_rows(self._collective.rank, self._collective.size)
        most = capacity(rows)
        return self._sok.DynamicVariable(
            dimension=table.width,
            initializer="nan",
            var_type="hybrid",
            trainable=False,
            name="table",
            init_capacity=min(FIRST_ROWS, most),
            max_capacity=most,
            max_hbm_for_vectors=self._gpu_gigabytes,
        )

    def _row(self, keys: tf.Tensor) -> tf.Tensor:
        return keys

    def _read(self, rows: tf.Tensor) -> tf.Tensor:
        # SOK starts as many blocks of threads as there are keys, and none is an error to CUDA.
        return tf.cond(
            tf.size(rows) > 0,
            lambda: self._begun(self.variable.sparse_read(rows), rows),
            lambda: tf.zeros([0, self.table.width]),
        )

    def _begun(self, values: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.math.is_nan(values), self.table.initial(keys), values)

    def _write(self, rows: tf.Tensor, values: tf.Tensor) -> None:
        tf.cond(
            tf.size(rows) > 0,
            lambda: tf.group(
                self.variable.scatter_update(tf.IndexedSlices(values, rows)),
            ),
            tf.no_op,
        )

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """As in `AllToAllEmbedding`; ranges are read in order, from 0 to the last row.

        SOK exports its table all at once. So the first range takes a copy of the keys held and
        their rows into the host's memory, and the last one lets it go.
        """
        rank, size = self._collective.rank, self._collective.size
        if first == 0 or self._exported is None:
            keys, values = (tensor.numpy() for tensor in self._sok.export(self.variable))
            order = np.argsort(keys)
            self._exported = keys[order], values[order]
        keys, values = self._exported
        wanted = np.arange(first, last, dtype=np.int64) * size + rank
        rows = self.table.initial(tf.constant(wanted)).numpy()
        begin, end = np.searchsorted(keys, [first * size + rank, last * size + rank])
        trained = ~np.isnan(values[begin:end]).any(axis=1)
        rows[keys[begin:end][trained] // size - first] = values[begin:end][trained]
        if last == self.table.local_rows(rank, size):
            self._exported = None
        return rows

    def write_rows(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """As in `AllToAllEmbedding`; rows that hold their first value take no room."""
        keys = rows * self._collective.size + self._collective.rank
        changed = (values != self.table.initial(tf.constant(keys)).numpy()).any(axis=1)
        if changed.any():
            self._sok.assign(
                self.variable, tf.constant(keys[changed]), tf.constant(values[changed])
            )
