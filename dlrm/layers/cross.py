"""Cross layers of low rank: products of features with one another, of an order that grows by layer.

With x_0 the input, layer l computes

    x_{l+1} = x_0 * (W_l (V_l x_l) + b_l) + x_l

where * multiplies value by value. The backward pass is written by hand, as that of
`dlrm.layers.mlp` is and for its reasons.

Shapes: B samples, N values of the input and of every output, R values in the middle, R < N.

Reference: Wang et al., DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale
Learning to Rank Systems, 2021, https://arxiv.org/abs/2008.13535, section 3.5, without its
mixture of experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dlrm.layers.bias import sum_over_samples


class _Passed(NamedTuple):
    """What the backward pass needs of one layer.

    Attributes:
        inputs: [B, N], x_l.
        middle: [B, R], V_l x_l.
        factor: [B, N], what x_0 is multiplied by.
    """

    inputs: tf.Tensor
    middle: tf.Tensor
    factor: tf.Tensor


class CrossLayers(keras.layers.Layer):
    """Cross layers one after another; [B, N] -> [B, N].

    Its weights are `cross_v_L` [N, R] and `cross_w_L` [R, N], which multiply from the right as
    kernels do, and `cross_bias_L` [N], for each layer L.

    Args:
        layers: Number of layers.
        rank: R.
        compiled: Whether XLA compiles forward and backward pass, each as one program.
        seed: Seed of the initial weights: Glorot normal matrices, as in MLPerf's DCNv2; biases are
            0. Layer L uses seed + 2 L and seed + 2 L + 1.
        dtype: Keras policy.
    """

    def __init__(
        self, layers: int, rank: int, *, compiled: bool = False, seed: int, dtype: str
    ) -> None:
        super().__init__(name="cross", dtype=dtype)
        self._count = layers
        self._rank = rank
        self._compiled = compiled
        self._seed = seed

    def build(self, input_shape: Sequence[int]) -> None:
        """Creates both matrices and the bias of each layer."""
        values = input_shape[-1]
        self._weights_of_layers = []
        for number in range(self._count):
            for offset, (name, shape) in enumerate(
                (("v", (values, self._rank)), ("w", (self._rank, values)))
            ):
                normal = keras.initializers.GlorotNormal(self._seed + 2 * number + offset)
                self._weights_of_layers.append(
                    self.add_weight(shape=shape, initializer=normal, name=f"cross_{name}_{number}")
                )
            self._weights_of_layers.append(
                self.add_weight(shape=(values,), initializer="zeros", name=f"cross_bias_{number}")
            )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Applies the layers; [B, N] -> [B, N]."""

        @tf.custom_gradient
        def layers(inputs: tf.Tensor, *weights: tf.Tensor) -> tuple[tf.Tensor, Any]:
            outputs, passed = self._forward(inputs, weights)
            return outputs, lambda upstream: self._backward(passed, weights, upstream)

        if self._compiled:
            layers = tf.function(layers, jit_compile=True, autograph=False)
        tensors = [inputs, *self._weights_of_layers]
        return layers(*(tf.cast(tensor, self.compute_dtype) for tensor in tensors))

    def _forward(
        self, first: tf.Tensor, weights: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, list[_Passed]]:
        """Returns the last layer's output [B, N], and what `_backward` needs of each layer."""
        values, passed = first, []
        for v, w, bias in zip(weights[::3], weights[1::3], weights[2::3]):
            middle = tf.matmul(values, v)  # [B, R]
            factor = tf.nn.bias_add(tf.matmul(middle, w), bias)  # [B, N]
            passed.append(_Passed(values, middle, factor))
            values = first * factor + values
        return values, passed

    def _backward(
        self, passed: Sequence[_Passed], weights: Sequence[tf.Tensor], upstream: tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns the gradients of the input [B, N] and of all weights, in their order.

        Args:
            passed: What `_forward` returned.
            weights: The weights of all layers.
            upstream: [B, N], gradient of the last layer's output.
        """
        first = passed[0].inputs
        of_first = []  # what reaches the first input from each layer past the layers before
        errors: list[tuple[tf.Tensor, tf.Tensor]] = []  # of each layer's middle and factor
        for layer, v, w in reversed(list(zip(passed, weights[::3], weights[1::3]))):
            of_first.append(upstream * layer.factor)
            of_factor = upstream * first
            of_middle = tf.matmul(of_factor, w, transpose_b=True)  # [B, R]
            upstream += tf.matmul(of_middle, v, transpose_b=True)  # the residual, and through V
            errors.insert(0, (of_middle, of_factor))
        upstream = tf.add_n([upstream, *of_first])
        # What feeds the input learns too, so its backward pass shall start before the weights'.
        with tf.control_dependencies([upstream]):
            of_weights = []
            for layer, (of_middle, of_factor) in zip(passed, errors):
                of_weights += [
                    tf.matmul(layer.inputs, of_middle, transpose_a=True),
                    tf.matmul(layer.middle, of_factor, transpose_a=True),
                    sum_over_samples(of_factor),
                ]
        return [upstream, *of_weights]
