"""Fully connected layers with ReLU as one fused operation on CPUs, forward and backward.

`make mlp_op` builds it. It works on tensors alone, independent of models and training.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import tensorflow as tf

from dlrm.op_library import load_operations

BUILD = Path(__file__).resolve().parents[3] / "build" / "mlp_op"
LIBRARY = "fused_mlp.so"
REMEDY = "build it with `make mlp_op`, or leave --custom_mlp out"

FusedMLP = Callable[..., tf.Tensor]


@functools.cache
def load(build: Path = BUILD) -> FusedMLP:
    """Loads the operation.

    Args:
        build: The folder that `make mlp_op` writes to, with a subfolder for each version of
            TensorFlow.

    Returns:
        `fused_mlp(inputs [B, I], kernels, biases, *, last_relu, input_learns)`, with a kernel
        [inputs, outputs] and a bias [outputs] for each layer, all float32. It returns [B, outputs
        of the last layer], with the values and gradients of `dlrm.layers.mlp`. Every layer but the
        last has a ReLU; `last_relu` says whether that one has it too, and `input_learns` whether
        anything asks for the gradient of the inputs.

    Raises:
        OSError: It is not built, or built for another TensorFlow only.
    """
    operations = load_operations("the fused MLP op", build, LIBRARY, REMEDY)

    def fused_mlp(
        inputs: tf.Tensor,
        kernels: Sequence[tf.Tensor],
        biases: Sequence[tf.Tensor],
        *,
        last_relu: bool,
        input_learns: bool,
    ) -> tf.Tensor:
        return operations.fused_mlp(
            input=inputs,
            kernels=list(kernels),
            biases=list(biases),
            last_relu=last_relu,
            input_learns=input_learns,
        ).output

    @tf.RegisterGradient("FusedMlp")
    def gradient(operation: Any, upstream: tf.Tensor, _: Any) -> list[tf.Tensor | None]:
        inputs, *weights = operation.inputs
        output, hidden = operation.outputs
        asked = operation.get_attr("input_learns")
        found = operations.fused_mlp_grad(
            input=inputs,
            kernels=weights[: len(weights) // 2],
            hidden=hidden,
            output=output,
            upstream=upstream,
            last_relu=operation.get_attr("last_relu"),
            input_learns=asked,
        )
        of_input = found.input_gradient if asked else None
        return [of_input, *found.kernel_gradients, *found.bias_gradients]

    return fused_mlp
