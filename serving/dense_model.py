"""The dense part of a model in plain NumPy: bottom MLP, interaction, top MLP, in float32.

It serves to look at what flows into each layer, not to be fast; the scorer serves. Knows the
weights by the names of `serving.dense_weights`, but neither files nor tables.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import ModelShape
from dlrm.layers.interaction_shape import DOT, SUM
from serving.dense_weights import cross_shapes, layers

LOGITS = "logits"

Floats = NDArray[np.float32]


def layer_names(model: ModelShape) -> list[str]:
    """The name of each layer, such as `top_0`, in the order in which they are applied."""
    return [f"{mlp}_{number}" for mlp, number, _, _ in layers(model)]


class DenseModel:
    """Computes logits, and shows the input of every layer on the way.

    Args:
        weights: The weights of all layers, by name.
        model: The shape of the model.
    """

    def __init__(self, weights: Mapping[str, NDArray[Any]], model: ModelShape) -> None:
        self._interaction = model.interaction
        self._cross = [weights[name] for name in cross_shapes(model)]
        self._layers: dict[str, list[tuple[str, Floats, Floats]]] = {"bottom": [], "top": []}
        for mlp, number, _, _ in layers(model):
            kernel, bias = weights[f"{mlp}_kernel_{number}"], weights[f"{mlp}_bias_{number}"]
            self._layers[mlp].append((f"{mlp}_{number}", kernel, bias))

    def steps(self, dense: Floats, vectors: Floats) -> Generator[tuple[str, Floats], None, None]:
        """Yields the input of each layer, float32 [B, I], by name; then the logits, [B, 1].

        Args:
            dense: float32 [B, D].
            vectors: float32 [B, T, W].
        """
        bottom = yield from self._apply("bottom", dense)
        logits = yield from self._apply("top", self._interact(bottom, vectors))
        yield LOGITS, logits

    def logits(self, dense: Floats, vectors: Floats) -> Floats:
        """Computes the logits, float32 [B], of dense [B, D] and vectors [B, T, W]."""
        return dict(self.steps(dense, vectors))[LOGITS][:, 0]

    def _interact(self, bottom: Floats, vectors: Floats) -> Floats:
        """The input of the top MLP, float32 [B, I], of bottom [B, W] and vectors [B, T, W]."""
        if self._interaction == DOT:
            _, kernel, _ = self._layers["top"][0]
            return interact(bottom, vectors, len(kernel))
        if self._interaction == SUM:
            return bottom + vectors.sum(axis=1)
        first = np.concatenate([bottom, vectors.reshape(len(vectors), -1)], axis=1)  # [B, N]
        values = first
        for v, w, bias in zip(self._cross[::3], self._cross[1::3], self._cross[2::3]):
            values = first * (values @ v @ w + bias) + values
        return values

    def _apply(self, mlp: str, values: Floats) -> Generator[tuple[str, Floats], None, Floats]:
        """Yields the input of each layer of an MLP; returns the output of the last one."""
        its_layers = self._layers[mlp]
        for number, (name, kernel, bias) in enumerate(its_layers):
            yield name, values
            values = values @ kernel + bias
            if mlp == "bottom" or number < len(its_layers) - 1:
                np.maximum(values, 0, out=values)
        return values


def interact(bottom: Floats, vectors: Floats, columns: int) -> Floats:
    """The input of the top MLP, as the trainer's dot interaction makes it.

    Args:
        bottom: float32 [B, W].
        vectors: float32 [B, T, W].
        columns: Number of columns of the result, which is that of the inputs of the top MLP's first
            kernel: it says how far the trainer padded.

    Returns:
        float32 [B, columns]: bottom, the strict lower triangle of the products of all pairs of
        vectors row by row, zeros.
    """
    stacked = np.concatenate([bottom[:, None], vectors], axis=1)  # [B, F, W]
    rows, others = np.tril_indices(stacked.shape[1], -1)
    pairs = (stacked @ stacked.transpose(0, 2, 1))[:, rows, others]  # [B, F (F - 1) / 2]
    padding = columns - bottom.shape[1] - pairs.shape[1]
    return np.pad(np.concatenate([bottom, pairs], axis=1), [(0, 0), (0, padding)])
