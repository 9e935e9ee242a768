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

        The names start with the optimizer's, such as `adagrad.sum.top_kernel_0`, so that
        in a checkpoint they differ from the weights' names and from other optimizers' state.
        """

    def build(self, variables: Mapping[str, tf.Variable]) -> None:
        """Takes the variables, by name, and creates the state. Called once, before `apply`."""

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> None:
        """One step for all variables.

        Every assignment must depend on `learning_rate`: the checks that a step may be taken at all
        are control dependencies of it.

        Args:
            gradients: The gradient of each variable, of its shape, in the order of `build`; a mean
                over ranks.
            learning_rate: float32 [].
            gradient_scale: The gradient of the loss is `gradient_scale` times the one given. It
                undoes the loss scale. A number, or float32 [].
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
        self,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> None:
        """See `DenseOptimizer.apply`."""
        step_size = learning_rate * gradient_scale
        assert len(gradients) == len(self._variables), "one gradient per variable"
        for variable, gradient in zip(self._variables, gradients):
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=step_size, delta=gradient
            )


class DenseMomentum:
    """SGD with momentum: velocity = momentum * velocity + gradient; weight -= rate * velocity.

    Source: TensorFlow's `ResourceApplyMomentum`, and PyTorch's SGD without dampening.

    Args:
        momentum: The share of the velocity that a step keeps, below 1.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        self._momentum = momentum
        self._variables: list[tf.Variable] = []
        self._velocities: list[tf.Variable] = []
        self.state: Mapping[str, tf.Variable] = {}

    def build(self, variables: Mapping[str, tf.Variable]) -> None:
        """See `DenseOptimizer.build`."""
        self._variables = list(variables.values())
        self._velocities = [filled_like(variable) for variable in self._variables]
        self.state = named_state("momentum.velocity", variables, self._velocities)

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> None:
        """See `DenseOptimizer.apply`."""
        assert len(gradients) == len(self._variables), "one gradient per variable"
        for variable, velocity, gradient in zip(self._variables, self._velocities, gradients):
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=velocity.handle,
                lr=learning_rate,
                grad=gradient * gradient_scale,
                momentum=self._momentum,
            )


class DenseWeightDecay:
    """Another optimizer with decoupled weight decay: weight -= learning_rate * decay * weight.

    It is not added to the gradient, so neither state nor adaptive rates see it (Loshchilov and
    Hutter, 2019; PyTorch's AdamW). Biases decay like kernels.

    Args:
        optimizer: The optimizer.
        decay: The decay.
    """

    def __init__(self, optimizer: DenseOptimizer, decay: float) -> None:
        self._optimizer = optimizer
        self._decay = decay
        self._variables: list[tf.Variable] = []

    @property
    def state(self) -> Mapping[str, tf.Variable]:
        """The optimizer's."""
        return self._optimizer.state

    def build(self, variables: Mapping[str, tf.Variable]) -> None:
        """See `DenseOptimizer.build`."""
        self._variables = list(variables.values())
        self._optimizer.build(variables)

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> None:
        """See `DenseOptimizer.apply`."""
        for variable in self._variables:
            variable.assign_sub(learning_rate * self._decay * variable)
        self._optimizer.apply(gradients, learning_rate, gradient_scale)


def filled_like(variable: tf.Variable, value: float = 0.0) -> tf.Variable:
    """Creates a part of the state: a variable of another's shape, all of one value."""
    return tf.Variable(tf.fill(variable.shape, value), trainable=False)


def named_state(
    kind: str, variables: Mapping[str, tf.Variable], parts: Sequence[tf.Variable]
) -> dict[str, tf.Variable]:
    """Returns one kind of state of each variable, by its name in a checkpoint."""
    return {f"{kind}.{name}": part for name, part in zip(variables, parts)}
