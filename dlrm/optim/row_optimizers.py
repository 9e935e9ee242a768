"""How the rows of the embedding tables change by their gradients.

An optimizer is given the distinct rows of a batch, each once, with the sum of the gradients of its
vectors. What it remembers about a row, its state, is stored directly behind the row. So one read
and one write serve both, and sharding, checkpoints and resharding treat them alike.

Works on tensors alone, independent of keys, ranks and storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf


class StateColumns(NamedTuple):
    """Float32 columns that an optimizer keeps behind every row.

    Attributes:
        name: Name of the tensor in a checkpoint. It starts with the optimizer's name, such as
            `adagrad.accumulator`, so that the state of one optimizer is never read as another's.
        width: Number of columns.
        initial: The value that they start with.
    """

    name: str
    width: int
    initial: float


class RowOptimizer(Protocol):
    """Updates rows of width W. U is the number of distinct rows in a batch."""

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """The state of a row of `width` values, in storage order; empty if there is none."""

    def apply(
        self,
        rows: tf.Tensor,
        state: Sequence[tf.Tensor],
        gradients: tf.Tensor,
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """One step for the rows of a batch.

        The new rows must be computed from `learning_rate`: the checks that a step may be taken at
        all are control dependencies of it.

        Args:
            rows: float32 [U, W], the rows before the step.
            state: float32 [U, columns] for each entry of `state_columns`, before the step.
            gradients: float32 [U, W], sums over the row's vectors on all ranks. They may be zero,
                for rows that were only looked up for ids outside their table.
            learning_rate: float32 [].
            gradient_scale: The gradient of the loss is `gradient_scale * gradients`. It undoes the
                loss scale and turns the sum over ranks into a mean. A number, or float32 [].

        Returns:
            The rows and the state after the step, of the shapes that were given.
        """


class RowSGD:
    """Stochastic gradient descent: row -= learning_rate * gradient."""

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """Empty: plain SGD keeps nothing but the rows."""
        return ()

    def apply(
        self,
        rows: tf.Tensor,
        state: Sequence[tf.Tensor],
        gradients: tf.Tensor,
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """See `RowOptimizer.apply`."""
        # Both factors are applied to the scalar, which saves a pass over the gradients.
        return rows - learning_rate * gradient_scale * gradients, ()


class RowWiseAdagrad:
    """Adagrad with one value of state for a row: the sum of its gradients' mean squares.

    state += mean(gradient^2); row -= learning_rate * gradient / (sqrt(state) + epsilon). The state
    takes 1 / W of the memory that Adagrad's takes.

    Args:
        epsilon: Least denominator; above 0, as a row whose gradients were all 0 divides by it.
    """

    def __init__(self, epsilon: float = 1e-8) -> None:
        assert epsilon > 0, "a row without gradients would become 0 / 0"
        self._epsilon = epsilon

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """One sum for each row, whatever its width."""
        return (StateColumns("rowwise_adagrad.sum", 1, initial=0.0),)

    def apply(
        self,
        rows: tf.Tensor,
        state: Sequence[tf.Tensor],
        gradients: tf.Tensor,
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """See `RowOptimizer.apply`."""
        scale = tf.convert_to_tensor(gradient_scale, gradients.dtype)
        squares = tf.reduce_mean(tf.square(gradients), axis=1, keepdims=True)  # [U, 1]
        total = state[0] + squares * tf.square(scale)
        # The factor of a row first: one pass over the gradients instead of three.
        factor = learning_rate * scale / (tf.sqrt(total) + self._epsilon)  # [U, 1]
        return rows - factor * gradients, (total,)
