"""How the weights of the dense layers change by their gradients.

Weights and state are the same on every rank. The state is a mapping of named variables, which is
checkpointed together with the weights.

Works on variables and gradients alone, independent of the model, of ranks and of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import tensorflow as tf


class DenseOptimizer(Protocol):
    """Updates the variables that `build` is given."""

    @property
    def state(self) -> Mapping[str, tf.Variable]:
        """The variables kept from step to step, by name; empty if there are none.

        The names start with the optimizer's, such as `adagrad.accumulator.top_kernel_0`, so that
        in a checkpoint they differ from the weights' names and from other optimizers' state.
        """

    def build(self, variables: Mapping[str, tf.Variable]) -> None:
        """Takes the variables, by name, and creates the state. Called once, before `apply`."""

    def apply(
        self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, gradient_scale: float
    ) -> None:
        """One step for all variables.

        Every assignment must depend on `learning_rate`: the checks that a step may be taken at all
        are control dependencies of it.

        Args:
            gradients: The gradient of each variable, of its shape, in the order of `build`; a mean
                over ranks.
            learning_rate: float32 [].
            gradient_scale: The gradient of the loss is `gradient_scale` times the one given. It
                undoes the loss scale.
        """


class DenseSGD:
    """Stochastic gradient descent: weight -= learning_rate * gradient."""

    def __init__(self) -> None:
        self._variables: list[tf.Variable] = []

    @property
    def state(self) -> Mapping[str, tf.Variable]:
        """Empty: plain SGD keeps nothing but the weights."""
        return {}

    def build(self, variables: Mapping[str, tf.Variable]) -> None:
        """See `DenseOptimizer.build`."""
        self._variables = list(variables.values())

    def apply(
        self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, gradient_scale: float
    ) -> None:
        """See `DenseOptimizer.apply`."""
        step_size = learning_rate * gradient_scale
        assert len(gradients) == len(self._variables), "one gradient per variable"
        for variable, gradient in zip(self._variables, gradients):
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=step_size, delta=gradient
            )
