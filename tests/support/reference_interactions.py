"""The interactions other than the dot products and their gradients, in float64 NumPy."""

from __future__ import annotations

import numpy as np


class ReferenceInteraction:
    """`sum`, `concat` or `dcnv2`, with the interface that `ReferenceDLRM` takes.

    Args:
        kind: The name of the interaction.
        weights: V [N, R], W [R, N] and b [N] of each cross layer; none but for `dcnv2`.
    """

    def __init__(self, kind, weights=()):
        self.kind = kind
        self.weights = [np.array(weight, np.float64) for weight in weights]

    def forward(self, stacked):
        """[B, F, W] -> [B, I]."""
        if self.kind == "sum":
            return stacked.sum(axis=1)
        first = stacked.reshape(len(stacked), -1)
        self._inputs = [first]
        for v, w, bias in self._layers():
            values = self._inputs[-1]
            self._inputs.append(first * (values @ v @ w + bias) + values)
        return self._inputs[-1]

    def backward(self, stacked, upstream):
        """The gradient of `stacked`, and those of the weights; after `forward`."""
        if self.kind == "sum":
            return np.repeat(upstream[:, None], stacked.shape[1], axis=1), []
        first = self._inputs[0]
        of_first = np.zeros_like(first)
        gradients = []
        for values, (v, w, bias) in reversed(list(zip(self._inputs, self._layers()))):
            of_first += upstream * (values @ v @ w + bias)
            product = upstream * first  # the gradient of W V x + b
            gradients = [
                values.T @ (product @ w.T),
                (values @ v).T @ product,
                product.sum(axis=0),
                *gradients,
            ]
            upstream = upstream + product @ w.T @ v.T
        return (upstream + of_first).reshape(stacked.shape), gradients

    def _layers(self):
        return list(zip(self.weights[::3], self.weights[1::3], self.weights[2::3]))


class ReferenceDots:
    """The dot products of all pairs; see `ReferenceInteraction`.

    Args:
        output_width: Number of columns, padding included.
    """

    weights = ()

    def __init__(self, output_width):
        self._output_width = output_width

    def forward(self, stacked):
        """The first row of each sample, the strict lower triangle of X X^T, zeros."""
        return interact(stacked, self._output_width)

    def backward(self, stacked, upstream):
        """The gradient of `stacked`; there are no weights."""
        return interact_gradient(stacked, upstream), []


def interact(stacked, output_width):
    """The first row of each sample, the strict lower triangle of X X^T row by row, zeros."""
    rows, columns = np.tril_indices(stacked.shape[1], -1)
    products = np.einsum("bid,bjd->bij", stacked, stacked)[:, rows, columns]
    values = np.concatenate([stacked[:, 0], products], axis=1)
    return np.pad(values, [(0, 0), (0, output_width - values.shape[1])])


def interact_gradient(stacked, upstream):
    """The gradient of `interact` with respect to `stacked`."""
    features, width = stacked.shape[1:]
    gradient = np.zeros_like(stacked)
    gradient[:, 0] = upstream[:, :width]
    position = width
    for row in range(features):
        for column in range(row):
            pair = upstream[:, position : position + 1]
            gradient[:, row] += pair * stacked[:, column]
            gradient[:, column] += pair * stacked[:, row]
            position += 1
    return gradient
