"""Interactions without products: the sum of all vectors, and all vectors one behind the other.

Shapes: B samples, T tables, vectors of W values.
"""

from __future__ import annotations

import tensorflow as tf


def sum_interaction(bottom: tf.Tensor, *vectors: tf.Tensor) -> tf.Tensor:
    """Adds up the bottom output and all vectors.

    Args:
        bottom: [B, W], output of the bottom MLP.
        vectors: [B, T, W], same type; the tables may come as several tensors.

    Returns:
        [B, W].
    """
    return tf.add_n([bottom, *(tf.reduce_sum(tensor, axis=1) for tensor in vectors)])


def concat_interaction(bottom: tf.Tensor, *vectors: tf.Tensor) -> tf.Tensor:
    """Puts all vectors behind the bottom output, in the order of the tables.

    Args:
        bottom: [B, W], output of the bottom MLP.
        vectors: [B, T, W], same type; the tables may come as several tensors.

    Returns:
        [B, (T + 1) W].
    """
    flat = [tf.reshape(tensor, [-1, tensor.shape[1] * tensor.shape[2]]) for tensor in vectors]
    return tf.concat([bottom, *flat], axis=1)
