"""How the rows of the embedding tables change by their gradients.

An optimizer is given the distinct rows of a batch, each once, with the sum of the gradients of its
vectors. What it remembers about a row, its state, is stored directly behind the row. So one read
and one write serve both, and sharding, checkpoints and resharding treat them alike.

All of them are lazy: a step changes the rows of its batch and their state, and no others. With
state, that is not what the same optimizer does to dense weights, where means decay at every step.

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
            `adagrad.sum`, so that the state of one optimizer is never read as another's.
        width: Number of columns.
        initial: The value that they start with.
    """

    name: str
    width: int
    initial: float


class RowStep(NamedTuple):
    """What the rows of a batch are stepped by.

    Attributes:
        gradients: float32 [U, W], sums over the row's vectors on all ranks.
        learning_rate: float32 [].
        gradient_scale: Undoes the loss scale and turns the sum over ranks into a mean. A number, or
            float32 [].
    """

    gradients: tf.Tensor
    learning_rate: tf.Tensor
    gradient_scale: float | tf.Tensor

    @property
    def gradient(self) -> tf.Tensor:
        """The gradient of the loss, float32 [U, W]."""
        return self.gradient_scale * self.gradients


class RowOptimizer(Protocol):
    """Updates rows of width W. U is the number of distinct rows in a batch."""

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """The state of a row of `width` values, in storage order; empty if there is none."""

    def apply(
        self, rows: tf.Tensor, state: Sequence[tf.Tensor], step: RowStep
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """One step for the rows of a batch.

        The new rows must be computed from the learning rate: the checks that a step may be taken at
        all are control dependencies of it.

        Args:
            rows: float32 [U, W], the rows before the step.
            state: float32 [U, columns] for each entry of `state_columns`, before the step.
            step: The gradients and the learning rate.

        Returns:
            The rows and the state after the step, of the shapes that were given.
        """


class RowSGD:
    """Stochastic gradient descent: row -= learning_rate * gradient."""

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """Empty: plain SGD keeps nothing but the rows."""
        return ()

    def apply(
        self, rows: tf.Tensor, state: Sequence[tf.Tensor], step: RowStep
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """See `RowOptimizer.apply`."""
        # Both factors are applied to the scalar, which saves a pass over the gradients.
        return rows - step.learning_rate * step.gradient_scale * step.gradients, ()


class RowMomentum:
    """SGD with momentum: velocity = momentum * velocity + gradient; row -= rate * velocity.

    Source: TensorFlow's `ResourceSparseApplyMomentum`, and PyTorch's SGD without dampening. What
    is left of a row's velocity acts when the row is next in a batch, however long that takes.

    Args:
        momentum: The share of the velocity that a step keeps, below 1.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        self._momentum = momentum

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """One velocity for each value of the row."""
        return (StateColumns("momentum.velocity", width, initial=0.0),)

    def apply(
        self, rows: tf.Tensor, state: Sequence[tf.Tensor], step: RowStep
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """See `RowOptimizer.apply`."""
        velocity = self._momentum * state[0] + step.gradient
        return rows - step.learning_rate * velocity, (velocity,)


class RowWeightDecay:
    """Another optimizer with decoupled weight decay: row -= learning_rate * decay * row.

    It is not added to the gradient, so neither state nor adaptive rates see it (Loshchilov and
    Hutter, 2019; FBGEMM's `WeightDecayMode.DECOUPLE`); to plain SGD that makes no difference. Rows
    that are not in the batch do not decay.

    Args:
        optimizer: The optimizer.
        decay: The decay.
    """

    def __init__(self, optimizer: RowOptimizer, decay: float) -> None:
        self._optimizer = optimizer
        self._decay = decay

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """The optimizer's."""
        return self._optimizer.state_columns(width)

    def apply(
        self, rows: tf.Tensor, state: Sequence[tf.Tensor], step: RowStep
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """See `RowOptimizer.apply`."""
        decayed = rows - step.learning_rate * self._decay * rows
        return self._optimizer.apply(decayed, state, step)
