"""DLRM's dense part in Keras: bottom MLP, dot interaction, top MLP.

Takes embedding vectors as an input, so it knows nothing of tables, ranks or training.

Reference: Naumov et al., Deep Learning Recommendation Model for Personalization and
Recommendation Systems, 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import keras
import numpy as np
import tensorflow as tf

import interact_op

ALIGNMENT = 8  # the interaction's width is padded to a multiple of this, for tensor cores


def interaction_width(width: int, tables: int) -> int:
    """Values a sample that `dot_interaction` gives, padding included."""
    values = width + tables * (tables + 1) // 2
    return -(-values // ALIGNMENT) * ALIGNMENT


@tf.custom_gradient
def dot_interaction(
    bottom: tf.Tensor, *vectors: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]]:
    """The bottom output beside the dot products of all pairs of vectors.

    With X = [bottom, vectors] of F = 1 + tables rows, the pairs are the strict lower triangle of
    X X^T in row-major order.

    Args:
        bottom: [batch, width], the bottom MLP's output.
        vectors: [batch, tables, width], same type; the tables may come as several tensors.

    Returns:
        [batch, interaction_width(width, tables)]: bottom, pairs, zero padding.

    Raises:
        ValueError: ranks or widths that do not match.
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

    stacked = tf.concat([bottom[:, None], *vectors], axis=1)
    products = tf.matmul(stacked, stacked, transpose_b=True)
    # Runs of a row are copied whole; a gather of single values is several times slower on CPUs.
    triangle = [products[:, row, :row] for row in range(1, features)]
    zeros = tf.zeros([tf.shape(bottom)[0], padding], bottom.dtype)
    output = tf.concat([bottom, *triangle, zeros], axis=1)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Row r of the triangle begins at pair r (r - 1) / 2. Every slice is as long as the longest,
        # so that all are copied alike; what it takes beyond its own row is masked.
        pair_gradients = tf.pad(upstream[:, width:], [[0, 0], [0, features]])
        begins = [row * (row - 1) // 2 for row in range(features)]
        rows = tf.concat([pair_gradients[:, begin : begin + features] for begin in begins], axis=1)
        mask = tf.constant(np.tril(np.ones([features, features]), -1), rows.dtype)
        lower = tf.reshape(rows, [-1, features, features]) * mask
        # X X^T is symmetric: one product with both triangles filled gives all of dX.
        stacked_gradient = tf.matmul(lower + tf.linalg.matrix_transpose(lower), stacked)
        first, *others = tf.split(stacked_gradient, sizes, axis=1)
        return (upstream[:, :width] + first[:, 0], *others)

    return output, gradient


class MLP(keras.layers.Layer):
    """Fully connected layers with ReLU between them.

    Args:
        units: outputs of each layer.
        last_relu: whether the last layer has a ReLU too.
        input_first: whether the backward pass finishes the gradient of the input before it begins
            those of the kernels. What comes before this MLP then need not wait for them: on the way
            back, the exchange of the vectors' gradient overlaps with half of this MLP's products.
        compiled: whether XLA compiles forward and backward pass by themselves.
        seed: decides the initial weights: Glorot normal kernels, biases N(0, 1/sqrt(units)).
        name: of the layer.
        dtype: Keras policy.
    """

    def __init__(
        self,
        units: Sequence[int],
        *,
        last_relu: bool,
        input_first: bool,
        compiled: bool,
        seed: int,
        name: str,
        dtype: str,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._units = tuple(units)
        self._last_relu = last_relu
        self._input_first = input_first
        self._compiled = compiled
        self._seed = seed

    def build(self, input_shape: Sequence[int]) -> None:
        """Makes kernel and bias of each layer."""
        self._kernels, self._biases = [], []
        sizes = [input_shape[-1], *self._units]
        for index, shape in enumerate(zip(sizes, sizes[1:])):
            seed = self._seed + 2 * index
            normal = keras.initializers.RandomNormal(stddev=shape[1] ** -0.5, seed=seed + 1)
            self._kernels.append(
                self.add_weight(
                    shape=shape,
                    initializer=keras.initializers.GlorotNormal(seed),
                    name=f"{self.name}_kernel_{index}",
                )
            )
            self._biases.append(
                self.add_weight(
                    shape=shape[1:], initializer=normal, name=f"{self.name}_bias_{index}"
                )
            )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[batch, features] -> [batch, units of the last layer]."""

        @tf.custom_gradient
        def layers(inputs: tf.Tensor, *weights: tf.Tensor) -> tuple[tf.Tensor, Any]:
            kernels, biases = weights[: len(self._units)], weights[len(self._units) :]
            outputs = self._forward(inputs, kernels, biases)
            return outputs[-1], lambda upstream: self._backward(outputs, kernels, upstream)

        tensors = [inputs, *self._kernels, *self._biases]
        if self._compiled:
            layers = tf.function(layers, jit_compile=True, autograph=False)
        return layers(*(tf.cast(tensor, self.compute_dtype) for tensor in tensors))

    def _has_relu(self, index: int) -> bool:
        return self._last_relu or index < len(self._units) - 1

    def _forward(
        self, inputs: tf.Tensor, kernels: Sequence[tf.Tensor], biases: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        """The input and every layer's output."""
        outputs = [inputs]
        for index, (kernel, bias) in enumerate(zip(kernels, biases)):
            values = tf.nn.bias_add(tf.matmul(outputs[-1], kernel), bias)
            outputs.append(tf.nn.relu(values) if self._has_relu(index) else values)
        return outputs

    def _backward(
        self, outputs: Sequence[tf.Tensor], kernels: Sequence[tf.Tensor], upstream: tf.Tensor
    ) -> list[tf.Tensor]:
        """Gradients of the input, the kernels and the biases."""
        errors: list[tf.Tensor] = []
        for index, kernel in reversed(list(enumerate(kernels))):
            if self._has_relu(index):
                upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs[index + 1])
            errors.insert(0, upstream)
            upstream = tf.matmul(upstream, kernel, transpose_b=True)
        with tf.control_dependencies([upstream] if self._input_first else []):
            of_kernels = [
                tf.matmul(x, error, transpose_a=True) for x, error in zip(outputs, errors)
            ]
            of_biases = [tf.raw_ops.BiasAddGrad(out_backprop=error) for error in errors]
        return [upstream, *of_kernels, *of_biases]


class DLRM(keras.Model):
    """Logits from dense features and embedding vectors.

    Args:
        bottom_units: layers of the bottom MLP; the last equals the vectors' width.
        top_units: layers of the top MLP; the last one gives the logit.
        seed: decides the initial weights.
        dtype: Keras policy: `float32`, `mixed_float16` or `mixed_bfloat16`.
        custom_interact: take the fused interaction of `interact_op`.
        compile_mlps: have XLA compile each MLP by itself, for where it cannot compile all.

    Raises:
        OSError: the fused interaction is not built.
    """

    def __init__(
        self,
        bottom_units: Sequence[int],
        top_units: Sequence[int],
        *,
        seed: int,
        dtype: str,
        custom_interact: bool = False,
        compile_mlps: bool = False,
    ) -> None:
        super().__init__(name="dlrm", dtype=dtype)
        self._interact = interact_op.load() if custom_interact else dot_interaction
        seed *= 1000  # far enough apart that layers of two seeds share no initialiser
        both: dict[str, Any] = {"compiled": compile_mlps, "dtype": dtype}
        self.bottom = MLP(
            bottom_units, last_relu=True, input_first=False, seed=seed, name="bottom", **both
        )
        self.top = MLP(
            top_units, last_relu=False, input_first=True, seed=seed + 500, name="top", **both
        )

    def call(self, dense: tf.Tensor, vectors: tf.Tensor | Sequence[tf.Tensor]) -> tf.Tensor:
        """Logits of a batch.

        Args:
            dense: float32 [batch, num_dense].
            vectors: [batch, tables, width]; the tables may come as several tensors.

        Returns:
            float32 [batch].
        """
        bottom = self.bottom(dense)
        vectors = [tf.cast(tensor, bottom.dtype) for tensor in tf.nest.flatten(vectors)]
        interaction = self._interact(bottom, *vectors)
        return tf.cast(tf.squeeze(self.top(interaction), axis=1), tf.float32)
