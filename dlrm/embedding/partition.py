"""Ordering the keys of a batch by owner, and undoing such an order.

Works on integers alone, independent of tables and of the exchange.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import tensorflow as tf

from dlrm.distributed import sharding


class Partition(NamedTuple):
    """Keys in the order of the ranks that own them. K is the number of keys, N that of ranks.

    Attributes:
        keys: [K], the keys of rank 0, then those of rank 1, and so on.
        order: int32 or int64 [K], the position that each of them had before.
        sent: int32 [N], the number of keys of each rank.
    """

    keys: tf.Tensor
    order: tf.Tensor
    sent: tf.Tensor


PartitionKeys = Callable[[tf.Tensor, int], Partition]  # keys and number of ranks


def by_owner(keys: tf.Tensor, size: int) -> Partition:
    """Partitions keys [K] with TensorFlow's own operations; keeps the order within an owner."""
    owner = tf.cast(sharding.owner_of(keys, size), tf.int32)  # [K]
    parts = tf.dynamic_partition(positions(keys), owner, size)  # N of [keys of the rank]
    order = tf.concat(parts, 0)  # [K]
    return Partition(tf.gather(keys, order), order, tf.stack([tf.size(part) for part in parts]))


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
