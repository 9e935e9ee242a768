"""The keys of a batch: the distinct ones, and all in the order of their owners.

Works on integers alone, independent of tables and of the exchange. On CPUs this takes the project's
own operations, where they are built: TensorFlow's give the same, but several times slower.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import tensorflow as tf

from dlrm import cpu_ops
from dlrm.distributed import sharding


class Partition(NamedTuple):
    """Keys in the order of the ranks that own them. K is the number of keys, N that of ranks.

    Attributes:
        keys: [K], the keys of rank 0, then those of rank 1, and so on.
        order: int32 or int64 [K], the position that each of them had before.
        position_of: int32 or int64 [K], the position that each of the keys given has now.
        sent: int32 [N], the number of keys of each rank.
    """

    keys: tf.Tensor
    order: tf.Tensor
    position_of: tf.Tensor
    sent: tf.Tensor


PartitionKeys = Callable[[tf.Tensor, int], Partition]  # keys and number of ranks


def by_owner(keys: tf.Tensor, size: int) -> Partition:
    """Partitions keys [K]; keeps the order within an owner."""
    if (operations := for_cpus(keys)) is not None:
        return Partition(*operations.keys_by_owner(keys, owners=size))
    owner = tf.cast(sharding.owner_of(keys, size), tf.int32)  # [K]
    parts = tf.dynamic_partition(positions(keys), owner, size)  # N of [keys of the rank]
    order = tf.concat(parts, 0)  # [K]
    sent = tf.stack([tf.size(part) for part in parts])
    return Partition(tf.gather(keys, order), order, inverse(order), sent)


def distinct(keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the distinct ones of keys [n], in the order in which they first appear.

    Returns:
        The distinct keys [U]; and int32 [n], for each key, its position among these.
    """
    if (operations := for_cpus(keys)) is not None:
        return tuple(operations.distinct_keys(keys))
    return tuple(tf.unique(keys))


def for_cpus(integers: tf.Tensor) -> cpu_ops.CpuOps | None:
    """The project's own operations, where they are built and take such integers; else None."""
    if integers.dtype in (tf.int32, tf.int64) and not on_gpu() and cpu_ops.is_built():
        return cpu_ops.load()
    return None


def on_gpu() -> bool:
    """Whether tensors of a step lie on a GPU."""
    return bool(tf.config.list_logical_devices("GPU"))


def position_dtype() -> tf.DType:
    """The type of positions: on GPUs, TensorFlow keeps int32 values in the host's memory."""
    return tf.int64 if on_gpu() else tf.int32


def positions(tensor: tf.Tensor) -> tf.Tensor:
    """The position of each element: 0, 1, ..., n - 1."""
    return tf.range(tf.size(tensor, position_dtype()), dtype=position_dtype())


def inverse(order: tf.Tensor) -> tf.Tensor:
    """The permutation that undoes `order`, a permutation [n] of `positions`."""
    if not on_gpu():
        return tf.math.invert_permutation(order)
    # In a program for GPUs, invert_permutation computes on the host.
    return tf.scatter_nd(order[:, None], positions(order), tf.shape(order, position_dtype()))
