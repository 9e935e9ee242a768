"""Operations for CPUs: an MLP's layers in one, forward and backward, and sums of vectors by row.

`make cpu_ops` builds them. They work on tensors alone, independent of models, tables and training.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from dlrm.op_library import load_operations

BUILD = Path(__file__).resolve().parents[2] / "build" / "cpu_ops"
LIBRARY = "cpu_ops.so"
REMEDY = "build them with `make cpu_ops`, or leave --custom_mlp out"


class CpuOps(NamedTuple):
    """The operations; all values are float32.

    Attributes:
        fused_mlp: `(inputs [B, I], kernels, biases, *, last_relu, input_learns)`, with a kernel
            [inputs, outputs] and a bias [outputs] for each layer. It returns [B, outputs of the
            last layer], with the values and gradients of `dlrm.layers.mlp`. Every layer but the
            last has a ReLU; `last_relu` says whether that one has it too, and `input_learns`
            whether anything asks for the gradient of the inputs.
        sum_rows: `(vectors [n, W], row_of int32 [n], rows int32 [])`. It returns [rows, W], the
            sums of the vectors of each row, added in their order: the same bits as those of
            `tf.math.unsorted_segment_sum`. It has no gradient.
    """

    fused_mlp: Callable[..., tf.Tensor]
    sum_rows: Callable[..., tf.Tensor]


def is_built(build: Path = BUILD) -> bool:
    """Whether the operations were built for this TensorFlow."""
    return (build / f"tensorflow-{tf.__version__}" / LIBRARY).exists()


@functools.cache
def load(build: Path = BUILD) -> CpuOps:
    """Loads the operations.

    Args:
        build: The folder that `make cpu_ops` writes to, with a subfolder for each version of
            TensorFlow.

    Returns:
        The operations.

    Raises:
        OSError: They are not built, or built for another TensorFlow only.
    """
    operations = load_operations("the operations for CPUs", build, LIBRARY, REMEDY)

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

    def sum_rows(vectors: tf.Tensor, row_of: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        return operations.sum_rows(vectors=vectors, row_of=row_of, rows=rows)

    return CpuOps(fused_mlp, sum_rows)
