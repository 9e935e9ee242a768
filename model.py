"""DLRM's dense part in Keras: bottom MLP, dot interaction, top MLP.

Takes embedding vectors as an input, so it knows nothing of tables, ranks or training.

Reference: Naumov et al., Deep Learning Recommendation Model for Personalization and
Recommendation Systems, 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import keras
import numpy as np
import tensorflow as tf

ALIGNMENT = 8  # the interaction's width is padded to a multiple of this, for tensor cores


def interaction_width(width: int, tables: int) -> int:
    """Values a sample that `dot_interaction` gives, padding included."""
    values = width + tables * (tables + 1) // 2
    return -(-values // ALIGNMENT) * ALIGNMENT


@tf.custom_gradient
def dot_interaction(
    bottom: tf.Tensor, vectors: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    """The bottom output beside the dot products of all pairs of vectors.

    With X = [bottom, vectors] of F = 1 + tables rows, the pairs are the strict lower triangle of
    X X^T in row-major order.

    Args:
        bottom: [batch, width], the bottom MLP's output.
        vectors: [batch, tables, width], same type.

    Returns:
        [batch, interaction_width(width, tables)]: bottom, pairs, zero padding.

    Raises:
        ValueError: ranks or widths that do not match.
    """
    if bottom.shape.rank != 2 or vectors.shape.rank != 3 or bottom.shape[1] != vectors.shape[2]:
        raise ValueError(
            "expected bottom [batch, width] and vectors [batch, tables, width], "
            f"found {bottom.shape} and {vectors.shape}"
        )
    width, tables = vectors.shape[2], vectors.shape[1]
    features = tables + 1
    pairs = features * tables // 2
    padding = interaction_width(width, tables) - width - pairs

    stacked = tf.concat([bottom[:, None], vectors], axis=1)
    products = tf.matmul(stacked, stacked, transpose_b=True)
    # Runs of a row are copied whole; a gather of single values is several times slower on CPUs.
    triangle = [products[:, row, :row] for row in range(1, features)]
    zeros = tf.zeros([tf.shape(bottom)[0], padding], bottom.dtype)
    output = tf.concat([bottom, *triangle, zeros], axis=1)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Row r of the triangle begins at pair r (r - 1) / 2. Every slice is as long as the longest,
        # so that all are copied alike; what it takes beyond its own row is masked.
        pair_gradients = tf.pad(upstream[:, width:], [[0, 0], [0, features]])
        begins = [row * (row - 1) // 2 for row in range(features)]
        rows = tf.concat([pair_gradients[:, begin : begin + features] for begin in begins], axis=1)
        mask = tf.constant(np.tril(np.ones([features, features]), -1), rows.dtype)
        lower = tf.reshape(rows, [-1, features, features]) * mask
        # X X^T is symmetric: one product with both triangles filled gives all of dX.
        stacked_gradient = tf.matmul(lower + tf.linalg.matrix_transpose(lower), stacked)
        return upstream[:, :width] + stacked_gradient[:, 0], stacked_gradient[:, 1:]

    return output, gradient


class DLRM(keras.Model):
    """Logits from dense features and embedding vectors.

    Args:
        bottom_units: layers of the bottom MLP, ReLU on all; the last equals the vectors' width.
        top_units: layers of the top MLP, ReLU on all but the last, which gives the logit.
        seed: decides the initial weights: Glorot normal kernels, biases N(0, 1/sqrt(units)).
        dtype: Keras policy: `float32`, `mixed_float16` or `mixed_bfloat16`.
    """

    def __init__(
        self, bottom_units: Sequence[int], top_units: Sequence[int], *, seed: int, dtype: str
    ) -> None:
        super().__init__(name="dlrm", dtype=dtype)

        def mlp(name: str, units: Sequence[int], last: str, first_seed: int) -> keras.Sequential:
            return keras.Sequential(
                [
                    keras.layers.Dense(
                        width,
                        activation=last if index == len(units) - 1 else "relu",
                        kernel_initializer=keras.initializers.GlorotNormal(first_seed + 2 * index),
                        bias_initializer=keras.initializers.RandomNormal(
                            stddev=width**-0.5, seed=first_seed + 2 * index + 1
                        ),
                        dtype=dtype,
                        name=f"{name}_{index}",
                    )
                    for index, width in enumerate(units)
                ],
                name=name,
            )

        first_seed = 1000 * seed  # far enough apart that layers of two seeds share no initialiser
        self.bottom = mlp("bottom", bottom_units, "relu", first_seed)
        self.top = mlp("top", top_units, "linear", first_seed + 500)

    def call(self, dense: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """Logits of a batch.

        Args:
            dense: float32 [batch, num_dense].
            vectors: [batch, tables, width].

        Returns:
            float32 [batch].
        """
        bottom = self.bottom(dense)
        interaction = dot_interaction(bottom, tf.cast(vectors, bottom.dtype))
        return tf.cast(tf.squeeze(self.top(interaction), axis=1), tf.float32)
