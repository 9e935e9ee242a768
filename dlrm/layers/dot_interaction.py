"""The dot interaction in plain TensorFlow.

`interact_op` computes the same values and gradients in one fused operation. Shapes: B samples, T
tables, F = 1 + T vectors of W values that interact, P = F T / 2 pairs.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import tensorflow as tf

from dlrm.layers.interaction_width import interaction_width


@tf.custom_gradient
def dot_interaction(
    bottom: tf.Tensor, *vectors: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]]:
    """Concatenates the bottom output and the dot products of all pairs of vectors.

    With X = [bottom, vectors], F rows, the pairs are the strict lower triangle of X X^T in
    row-major order.

    Args:
        bottom: [B, W], output of the bottom MLP.
        vectors: [B, T, W], same type; the tables may come as several tensors.

    Returns:
        [B, interaction_width(W, T)]: bottom, pairs, zero padding.

    Raises:
        ValueError: Ranks or widths do not match.
    """
    width = bottom.shape[-1]
    for tensor in vectors:
        if bottom.shape.rank != 2 or tensor.shape.rank != 3 or tensor.shape[2] != width:
            raise ValueError(
                "expected bottom [batch, width] and vectors [batch, tables, width], "
                f"found {bottom.shape} and {tensor.shape}"
            )
    sizes = [1, *(tensor.shape[1] for tensor in vectors)]
    tables = sum(sizes) - 1
    features = tables + 1
    pairs = features * tables // 2
    padding = interaction_width(width, tables) - width - pairs

    stacked = tf.concat([bottom[:, None], *vectors], axis=1)  # [B, F, W]
    products = tf.matmul(stacked, stacked, transpose_b=True)  # [B, F, F]
    # Each row's part is one slice; a gather of single values is several times slower on CPUs.
    triangle = [products[:, row, :row] for row in range(1, features)]  # P columns in all
    zeros = tf.zeros([tf.shape(bottom)[0], padding], bottom.dtype)
    output = tf.concat([bottom, *triangle, zeros], axis=1)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Row r of the triangle begins at pair r (r - 1) / 2. All slices are as long as the longest
        # one, so that they stack to a matrix; what a slice takes beyond its row is masked.
        pair_gradients = tf.pad(upstream[:, width:], [[0, 0], [0, features]])  # [B, P + ...]
        begins = [row * (row - 1) // 2 for row in range(features)]
        rows = tf.concat([pair_gradients[:, begin : begin + features] for begin in begins], axis=1)
        mask = tf.constant(np.tril(np.ones([features, features]), -1), rows.dtype)
        lower = tf.reshape(rows, [-1, features, features]) * mask  # [B, F, F]
        # X X^T is symmetric: one product with both triangles filled gives all of dX, [B, F, W].
        stacked_gradient = tf.matmul(lower + tf.linalg.matrix_transpose(lower), stacked)
        first, *others = tf.split(stacked_gradient, sizes, axis=1)
        return (upstream[:, :width] + first[:, 0], *others)

    return output, gradient
