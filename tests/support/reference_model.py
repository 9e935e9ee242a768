"""DLRM and its gradient in float64 NumPy, written to be read: what the fast code must equal."""

from __future__ import annotations

import numpy as np

from tests.support.reference_interactions import ReferenceDots


class ReferenceDLRM:
    """A DLRM in one process, with whole tables and plain loops.

    Args:
        tables: The rows of each table, float64 [rows, width].
        bottom: Kernel and bias of each layer of the bottom MLP, all with ReLU.
        top: Kernel and bias of each layer of the top MLP, all but the last with ReLU.
        interaction: A `ReferenceInteraction`; the dot products by default.
    """

    def __init__(self, tables, bottom, top, interaction=None):
        self.tables = [np.array(table, np.float64) for table in tables]
        self.bottom = [(np.array(k, np.float64), np.array(b, np.float64)) for k, b in bottom]
        self.top = [(np.array(k, np.float64), np.array(b, np.float64)) for k, b in top]
        self.interaction = interaction or ReferenceDots(self.top[0][0].shape[0])

    def logits(self, dense, ids):
        """Logits [batch]; keeps what `step` needs."""
        self._bottom_values = forward(self.bottom, dense.astype(np.float64), last_relu=True)
        vectors = [table[column] for table, column in zip(self.tables, ids.T)]
        self._stacked = np.stack([self._bottom_values[-1], *vectors], axis=1)
        interaction = self.interaction.forward(self._stacked)
        self._top_values = forward(self.top, interaction, last_relu=False)
        return self._top_values[-1][:, 0]

    def step(self, dense, ids, labels, learning_rate, table_factor=1):
        """One step of gradient descent on the batch's mean loss; returns that loss.

        The learning rate of the tables is `table_factor` times the given one.
        """
        loss, tables, layers = self.gradients(dense, ids, labels)
        for table, gradient in zip(self.tables, tables):
            table -= learning_rate * table_factor * gradient
        for weight, gradient in zip(self.layers(), layers):
            weight -= learning_rate * gradient
        return loss

    def layers(self):
        """Kernel and bias of each layer and the interaction's weights, in order of `gradients`."""
        bottom, top = (
            [weight for layer in mlp for weight in layer] for mlp in (self.bottom, self.top)
        )
        return [*bottom, *self.interaction.weights, *top]

    def gradients(self, dense, ids, labels):
        """The batch's mean loss, and its gradients: of each whole table, of all in `layers`."""
        logits = self.logits(dense, ids)
        loss = np.mean(np.logaddexp(0, logits) - labels * logits)
        upstream = ((1 / (1 + np.exp(-logits)) - labels) / len(labels))[:, None]
        upstream, top = backward(self.top, self._top_values, upstream, last_relu=False)
        stacked, interaction = self.interaction.backward(self._stacked, upstream)
        _, bottom = backward(self.bottom, self._bottom_values, stacked[:, 0], last_relu=True)
        tables = [np.zeros_like(table) for table in self.tables]
        for table, column, gradient in zip(tables, ids.T, stacked[:, 1:].swapaxes(0, 1)):
            np.add.at(table, column, gradient)
        bottom, top = ([gradient for layer in mlp for gradient in layer] for mlp in (bottom, top))
        return loss, tables, [*bottom, *interaction, *top]


def forward(layers, values, *, last_relu):
    """The input and each layer's output."""
    outputs = [values]
    for index, (kernel, bias) in enumerate(layers):
        values = outputs[-1] @ kernel + bias
        if last_relu or index < len(layers) - 1:
            values = np.maximum(values, 0)
        outputs.append(values)
    return outputs


def backward(layers, outputs, upstream, *, last_relu):
    """The gradient of the input, and the gradients of each layer's kernel and bias."""
    gradients = []
    for index in reversed(range(len(layers))):
        if last_relu or index < len(layers) - 1:
            upstream = upstream * (outputs[index + 1] > 0)
        gradients.append((outputs[index].T @ upstream, upstream.sum(0)))
        upstream = upstream @ layers[index][0].T
    return upstream, gradients[::-1]
