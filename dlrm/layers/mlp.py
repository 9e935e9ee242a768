"""Fully connected layers whose backward pass is written out by hand.

Two things that automatic differentiation does not offer depend on it: the order in which gradients
are finished, and forward and backward passes that XLA compiles on their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


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
