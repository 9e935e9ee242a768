"""The parts that the HSTU model is put together from.

They compute in the type of their Keras policy; weights are float32.

Shapes: L rows of W values, H heads with A values of a query or key and V of a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from dlrm.layers.bias import add_bias
from dlrm_v3.config import HstuConfig
from dlrm_v3.hstu_op import HstuOps

# Weights are float32 also in 16-bit layers. Keras 2 has another word for it.
AS_STORED: dict[str, Any] = {
    "autocast" if keras.__version__[0] > "2" else "experimental_autocast": False
}
MLP_EPSILON = 1e-5
LAYER_EPSILON = 1e-6


def linear(x: tf.Tensor, kernel: Any, bias: Any) -> tf.Tensor:
    """Multiplies by the kernel and adds the bias, in the type of x: [L, I] -> [L, O]."""
    return add_bias(tf.matmul(x, tf.cast(kernel, x.dtype)), tf.cast(bias, x.dtype))


class SwishMlp(keras.layers.Layer):
    """Linear, x * sigmoid(layer norm), linear, and a layer norm unless it is a head.

    Args:
        sizes: Values of the input, of the hidden layer and of the output.
        ops: The operations, fused or plain.
        is_head: Whether it ends without a norm.
        initializer: Class of the kernels' initializer.
        seeds: Gives the seeds of the initial weights.
        name: Name of the layer, which its weights' names begin with.
        dtype: Keras policy.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        *,
        ops: HstuOps,
        seeds: Iterator[int],
        name: str,
        dtype: str,
        is_head: bool = False,
        initializer: Any = keras.initializers.GlorotUniform,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._ops = ops

        def weight(kind: str, shape: tuple[int, ...], initial: Any) -> Any:
            return self.add_weight(
                shape=shape, initializer=initial, **AS_STORED, name=f"{name}_{kind}"
            )

        inputs, hidden, outputs = sizes
        self._hidden_kernel = weight("kernel_0", (inputs, hidden), initializer(next(seeds)))
        self._hidden_bias = weight("bias_0", (hidden,), "zeros")
        self._hidden_scale = weight("scale_0", (hidden,), "ones")
        self._hidden_shift = weight("shift_0", (hidden,), "zeros")
        self._kernel = weight("kernel_1", (hidden, outputs), initializer(next(seeds)))
        self._bias = weight("bias_1", (outputs,), "zeros")
        self._scale = None if is_head else weight("scale_1", (outputs,), "ones")
        self._shift = None if is_head else weight("shift_1", (outputs,), "zeros")
        self.built = True

    def call(self, x: tf.Tensor, factor: float = 1.0) -> tf.Tensor:
        """Applies the layers: [L, inputs] -> [L, outputs].

        Args:
            x: The input.
            factor: Factor on the result; the norm's weights take it up, at no cost.
        """
        hidden = linear(x, self._hidden_kernel, self._hidden_bias)
        hidden = self._ops.layer_norm(
            hidden,
            tf.convert_to_tensor(self._hidden_scale),
            tf.convert_to_tensor(self._hidden_shift),
            epsilon=MLP_EPSILON,
            swish=True,
        )
        output = linear(hidden, self._kernel, self._bias)
        if self._scale is None:
            return output
        scale, shift = (tf.convert_to_tensor(w) * factor for w in (self._scale, self._shift))
        return self._ops.layer_norm(output, scale, shift, epsilon=MLP_EPSILON, swish=False)


class HstuLayer(keras.layers.Layer):
    """One layer: x + (dropout of gate, attention and gated norm) times a matrix.

    Args:
        config: Shape of the model.
        max_length: Length that attention's output is divided by.
        ops: The operations, fused or plain.
        seeds: Gives the seeds of the initial weights.
        name: Name of the layer, which its weights' names begin with.
        dtype: Keras policy.
    """

    def __init__(
        self,
        config: HstuConfig,
        max_length: int,
        *,
        ops: HstuOps,
        seeds: Iterator[int],
        name: str,
        dtype: str,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._ops = ops
        self._config = config
        self._attention = {
            "heads": config.heads,
            "attention_dim": config.attention_dim,
            "value_dim": config.value_dim,
            "scale": 1 / max_length,
            "groups": config.heads if config.group_norm else 1,
            "epsilon": LAYER_EPSILON,
        }

        def weight(kind: str, shape: tuple[int, ...], initial: Any) -> Any:
            return self.add_weight(
                shape=shape, initializer=initial, **AS_STORED, name=f"{name}_{kind}"
            )

        values, keys = config.heads * config.value_dim, config.heads * config.attention_dim
        self._sizes = [values, values, keys, keys]
        norms = (config.heads,) if config.group_norm else (values,)
        uniform = keras.initializers.GlorotUniform
        self._input_scale = weight("input_scale", (config.width,), "ones")
        self._input_shift = weight("input_shift", (config.width,), "zeros")
        projection = (config.width, sum(self._sizes))
        self._kernel = weight("kernel", projection, uniform(next(seeds)))
        self._bias = weight("bias", projection[1:], "zeros")
        self._scale = weight("scale", norms, "ones")
        self._shift = weight("shift", norms, "zeros")
        self._output = weight("output", (3 * values, config.width), uniform(next(seeds)))
        self.built = True

    def _normal(self, x: tf.Tensor) -> tf.Tensor:
        scale, shift = (tf.convert_to_tensor(w) for w in (self._input_scale, self._input_shift))
        return self._ops.layer_norm(x, scale, shift, epsilon=LAYER_EPSILON, swish=False)

    def _norm_weights(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Scale and shift of the norm of attention's output, [H * V] each."""
        weights = (tf.convert_to_tensor(self._scale), tf.convert_to_tensor(self._shift))
        if self._config.group_norm:  # one of each for a head
            weights = tuple(tf.repeat(weight, self._config.value_dim) for weight in weights)
        return weights

    def project(self, x: tf.Tensor) -> tf.Tensor:
        """Computes gates, values, queries and keys: [L, W] -> [L, 2 * H * (V + A)]."""
        return linear(self._normal(x), self._kernel, self._bias)

    def keys_and_values(self, projected: tf.Tensor) -> tf.Tensor:
        """Takes out what later targets need of a history: [L, H * (V + A)], v and k."""
        _, v, _, k = tf.split(projected, self._sizes, axis=1)
        return tf.concat([v, k], axis=1)

    def project_keys_and_values(self, x: tf.Tensor) -> tf.Tensor:
        """Computes `keys_and_values` of `project`, and nothing else."""
        kernel, bias = (
            self.keys_and_values(tf.convert_to_tensor(weight)[None] if rank == 1 else weight)
            for weight, rank in ((self._kernel, 2), (self._bias, 1))
        )
        return linear(self._normal(x), kernel, bias[0])

    def attend(self, projected: tf.Tensor, offsets: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Computes gate, attention and gated norm of whole sequences: [L, 3 * H * V]."""
        return self._ops.gated_attention(
            projected, *self._norm_weights(), offsets, targets, **self._attention
        )

    def attend_kept(
        self,
        projected: tf.Tensor,
        kept: tf.Tensor,
        history_offsets: tf.Tensor,
        target_offsets: tf.Tensor,
    ) -> tf.Tensor:
        """Computes what `attend` does for the targets, from kept keys and values."""
        return self._ops.target_attention(
            projected,
            kept,
            *self._norm_weights(),
            history_offsets,
            target_offsets,
            **self._attention,
        )

    def output(self, attended: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Mixes the heads and adds the layer's input: [L, 3 * H * V], [L, W] -> [L, W]."""
        return x + tf.matmul(attended, tf.cast(self._output, x.dtype))
