"""Fully connected layers whose backward pass is written by hand.

This offers what automatic differentiation does not: control over the order in which gradients are
computed, forward and backward passes that XLA compiles separately, and a fused operation in place
of both.

Shapes: B samples, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import keras
import tensorflow as tf

from dlrm.layers.bias import sum_over_samples

FusedMLP = Callable[..., tf.Tensor]  # `dlrm.cpu_ops.CpuOps.fused_mlp`


class MLP(keras.layers.Layer):
    """Fully connected layers with ReLU between them.

    Args:
        units: Number of outputs of each layer.
        last_relu: Whether the last layer has a ReLU too.
        input_learns: Whether whatever feeds this MLP learns. The backward pass then computes the
            gradient of the input, and before those of the kernels, so that the backward pass of
            what feeds it can start early; in a DLRM the all-to-all of the vector gradients overlaps
            with the kernel gradients.
        compiled: Whether XLA compiles forward and backward pass, each as one program.
        fused: The operation that computes the layers in place of TensorFlow's own, in float32 on a
            CPU.
        seed: Seed of the initial weights: Glorot normal kernels, biases N(0, 1 / sqrt(units)).
            Layer i uses seed + 2 i and seed + 2 i + 1.
        name: Name of the layer, which its weights' names begin with.
        dtype: Keras policy.
    """

    def __init__(
        self,
        units: Sequence[int],
        *,
        last_relu: bool,
        input_learns: bool,
        compiled: bool = False,
        fused: FusedMLP | None = None,
        seed: int,
        name: str,
        dtype: str,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._units = tuple(units)
        self._last_relu = last_relu
        self._input_learns = input_learns
        self._compiled = compiled
        self._fused = fused
        self._seed = seed

    def build(self, input_shape: Sequence[int]) -> None:
        """Creates kernel and bias of each layer."""
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
        """Applies the layers; [B, I of the first layer] -> [B, O of the last layer]."""
        if self._fused:
            return self._fused(
                inputs,
                [tf.convert_to_tensor(kernel) for kernel in self._kernels],
                [tf.convert_to_tensor(bias) for bias in self._biases],
                last_relu=self._last_relu,
                input_learns=self._input_learns,
            )

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
        """Returns the input [B, I] and every layer's output [B, O]."""
        outputs = [inputs]
        for index, (kernel, bias) in enumerate(zip(kernels, biases)):
            values = tf.nn.bias_add(tf.matmul(outputs[-1], kernel), bias)  # [B, O]
            outputs.append(tf.nn.relu(values) if self._has_relu(index) else values)
        return outputs

    def _backward(
        self, outputs: Sequence[tf.Tensor], kernels: Sequence[tf.Tensor], upstream: tf.Tensor
    ) -> list[tf.Tensor | None]:
        """Returns the gradients of the input [B, I], the kernels [I, O] and the biases [O].

        Args:
            outputs: What `_forward` returned.
            kernels: [I, O] for each layer.
            upstream: [B, O], gradient of the last layer's output.
        """
        errors: list[tf.Tensor] = []  # [B, O] for each layer: gradients before its ReLU
        for index, kernel in reversed(list(enumerate(kernels))):
            if self._has_relu(index):
                upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs[index + 1])
            errors.insert(0, upstream)
            if index or self._input_learns:
                upstream = tf.matmul(upstream, kernel, transpose_b=True)  # [B, I]
        with tf.control_dependencies([upstream] if self._input_learns else []):
            of_kernels = [
                tf.matmul(x, error, transpose_a=True) for x, error in zip(outputs, errors)
            ]
            of_biases = [sum_over_samples(error) for error in errors]
        return [upstream if self._input_learns else None, *of_kernels, *of_biases]
