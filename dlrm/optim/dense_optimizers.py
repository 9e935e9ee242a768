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


class DenseAdam:
    """Adam (Kingma and Ba, 2015) with bias correction: decaying means of gradients and squares.

    mean and square are the decaying means of gradient and gradient^2, both divided by what the
    decay leaves them short after so many steps; weight -= learning_rate * mean / (sqrt(square) +
    epsilon). The number of steps is part of the state.

    Args:
        betas: The share of each mean that a step keeps, both below 1.
        epsilon: Least denominator.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self._betas, self._epsilon = betas, epsilon
        self._variables: list[tf.Variable] = []
        self._means: list[tf.Variable] = []
        self._squares: list[tf.Variable] = []
        self.state: Mapping[str, tf.Variable] = {}

    def build(self, variables: Mapping[str, tf.Variable]) -> None:
        """See `DenseOptimizer.build`."""
        self._variables = list(variables.values())
        self._means = [_zeros_like(variable) for variable in self._variables]
        self._squares = [_zeros_like(variable) for variable in self._variables]
        self._steps = tf.Variable([0], dtype=tf.int64, trainable=False)
        self.state = {
            "adam.steps": self._steps,
            **{f"adam.mean.{name}": mean for name, mean in zip(variables, self._means)},
            **{f"adam.square.{name}": square for name, square in zip(variables, self._squares)},
        }

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> None:
        """See `DenseOptimizer.apply`."""
        assert len(gradients) == len(self._variables), "one gradient per variable"
        with tf.control_dependencies([learning_rate]):
            steps = tf.cast(self._steps.assign_add([1])[0], tf.float64)
        # In float64: in float32, 1 - 0.999 has five digits. The operation expects the powers of
        # the betas; given zeros, it leaves the correction to the two factors here.
        mean_share, square_share = (1 - tf.pow(tf.cast(b, tf.float64), steps) for b in self._betas)
        root = tf.sqrt(square_share)
        rate = learning_rate * tf.cast(root / mean_share, tf.float32)
        epsilon = tf.cast(self._epsilon * root, tf.float32)
        for variable, mean, square, gradient in zip(
            self._variables, self._means, self._squares, gradients
        ):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=mean.handle,
                v=square.handle,
                beta1_power=0.0,
                beta2_power=0.0,
                lr=rate,
                beta1=self._betas[0],
                beta2=self._betas[1],
                epsilon=epsilon,
                grad=gradient * gradient_scale,
            )


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape), trainable=False)
