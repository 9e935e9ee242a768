"""Reads the dense weights of a checkpoint, and nothing else that it keeps beside them.

Names follow `dlrm.layers.mlp`: `<mlp>_kernel_<layer>` [inputs, outputs], `<mlp>_bias_<layer>`; and
`dlrm.layers.cross`: `cross_v_<layer>`, `cross_w_<layer>`, `cross_bias_<layer>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dlrm.checkpoint.manifest import DENSE_FILE, Manifest, ModelShape
from dlrm.checkpoint.safetensors_file import TensorReader


def layers(model: ModelShape) -> Iterator[tuple[str, int, int | None, int]]:
    """Yields every layer: its MLP, number, inputs and outputs.

    The inputs of the top MLP's first layer, the interaction's output, are None.
    """
    for mlp, units, inputs in (
        ("bottom", model.bottom_mlp, model.num_dense),
        ("top", model.top_mlp, None),
    ):
        for number, outputs in enumerate(units or ()):
            yield mlp, number, inputs, outputs
            inputs = outputs


def cross_shapes(model: ModelShape) -> dict[str, tuple[int, ...]]:
    """The shape of each weight of the cross layers, by name; empty without such layers."""
    values = model.interaction_shape.output_width(model.embedding_dim, len(model.vocab_sizes))
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(model.cross_layers):
        shapes[f"cross_v_{number}"] = (values, model.cross_rank)
        shapes[f"cross_w_{number}"] = (model.cross_rank, values)
        shapes[f"cross_bias_{number}"] = (values,)
    return shapes


def _shapes(model: ModelShape) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    """Yields the name and shape of every weight; a size of None may be any."""
    for mlp, number, inputs, outputs in layers(model):
        if mlp == "top" and number == 0:
            yield from cross_shapes(model).items()
        yield f"{mlp}_kernel_{number}", (inputs, outputs)
        yield f"{mlp}_bias_{number}", (outputs,)


def read_dense(checkpoint: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """The weights of all layers by name, float32, from the bottom up.

    Optimizer state, which the same file may hold, is left out.

    Raises:
        ValueError: The checkpoint has tables alone, its file is damaged, or does not fit the model.
        OSError: The file cannot be read.
    """
    if DENSE_FILE not in manifest.files:
        raise ValueError(
            f"{checkpoint}: expected a model, found tables alone; give a checkpoint that a "
            "training run wrote"
        )
    weights = {}
    path = checkpoint / DENSE_FILE
    with TensorReader(path, manifest.files[DENSE_FILE]) as reader:
        for name, shape in _shapes(manifest.model):
            found = reader.tensors[name][1] if name in reader.tensors else None
            fits = found is not None and len(found) == len(shape)
            if not fits or any(a not in (None, b) for a, b in zip(shape, found or ())):
                wanted = ["any" if size is None else size for size in shape]
                raise ValueError(
                    f"{path}: expected {name} of shape {wanted}, found {found}; "
                    "give a checkpoint that a training run wrote"
                )
            weights[name] = reader.read(name)
    return weights
