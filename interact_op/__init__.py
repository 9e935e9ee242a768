"""The dot interaction as one fused operation, an alternative to that of plain TensorFlow.

`make interact_op` builds it. It works on tensors alone, independent of models, tables and training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import tensorflow as tf

from dlrm.op_library import load_operations, once

BUILD = Path(__file__).resolve().parent.parent / "build" / "interact_op"
LIBRARY = "dot_interact.so"
REMEDY = "build it with `make interact_op`, or leave --custom_interact out"

DotInteract = Callable[..., tf.Tensor]


@once
def load(build: Path = BUILD) -> DotInteract:
    """Loads the operation.

    Args:
        build: The folder that `make interact_op` writes to, with a subfolder for each version of
            TensorFlow.

    Returns:
        `dot_interact(bottom [batch, width], *vectors [batch, tables, width])`. It returns [batch,
        `interaction_width`]: bottom, the dot products of all pairs and zero padding, with the
        values, order and gradients of `dlrm.layers.dot_interaction`. Types are float32, float16
        and bfloat16; sums are float32.

    Raises:
        OSError: It is not built, or built for another TensorFlow only.
    """
    operations = load_operations("the fused interaction op", build, LIBRARY, REMEDY)

    def dot_interact(bottom: tf.Tensor, *vectors: tf.Tensor) -> tf.Tensor:
        return operations.dot_interact(bottom=bottom, vectors=list(vectors))

    @tf.RegisterGradient("DotInteract")
    def gradient(operation: Any, upstream: tf.Tensor) -> list[tf.Tensor]:
        bottom, *vectors = operation.inputs
        found = operations.dot_interact_grad(upstream=upstream, bottom=bottom, vectors=vectors)
        return [found.bottom_gradient, *found.vectors_gradient]

    return dot_interact
