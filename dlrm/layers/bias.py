"""The bias of a layer, whose gradient is added up in float32 whatever type the layer computes in.

On CPUs TensorFlow's own gradient adds bfloat16 values in bfloat16: once a sum is 256 times as large
as the values, it grows no more. For a batch of thousands, half of a gradient can be lost.

Shapes: B samples, O outputs of a layer.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def sum_over_samples(errors: tf.Tensor) -> tf.Tensor:
    """Adds up the gradients [B, O] of a layer's outputs in float32; the sum [O] has their type."""
    total = tf.raw_ops.BiasAddGrad(out_backprop=tf.cast(errors, tf.float32))
    return tf.cast(total, errors.dtype)


@tf.custom_gradient
def add_bias(values: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Adds the bias [O] to each row of values [B, O], both of one type."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return upstream, sum_over_samples(upstream)

    return tf.nn.bias_add(values, bias), gradient
