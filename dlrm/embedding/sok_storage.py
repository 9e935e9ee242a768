"""What NVIDIA's SparseOperationKit 2.x (SOK) provides. The only module that may import it.

SOK provides its tables and its kernel that partitions keys; routing, exchange and update are those
of `ShardedEmbedding`. SOK's own `all2all_dense_embedding` and optimizers find the routes again on
every call, read every key instead of every distinct row, and update rows through `IndexedSlices`.
So routes, bad ids, types, checkpoints and results are the same with every storage.

SOK has kernels for GPUs only.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from dlrm.embedding.partition import Partition, by_owner, inverse, position_dtype
from dlrm.embedding.row_storage import RowLayout
from dlrm.embedding.variable_storage import VariableStorage

# `dist_select` keeps 12 bytes for each key of 32 threads, 8 warps and all ranks in shared memory;
# with more ranks it would write beyond the 92 KiB that the smallest of SOK's GPUs has free.
SELECT_RANKS = 24


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
