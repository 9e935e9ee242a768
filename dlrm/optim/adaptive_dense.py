"""Dense optimizers that give each weight a learning rate of its own.

Works on variables and gradients alone; `dense_optimizers` has the interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from dlrm.optim.adaptive_rows import ftrl_step
from dlrm.optim.dense_optimizers import filled_like, named_state


class DenseAdagrad:
    """Adagrad: sum += gradient^2; weight -= learning_rate * gradient / (sqrt(sum) + epsilon).

    Source: TensorFlow's `ResourceApplyAdagradV2`.

    Args:
        epsilon: Least denominator; above 0, as a value whose gradients were all 0 divides by it.
        initial: What the sums start with.
    """

    def __init__(self, epsilon: float = 1e-8, initial: float = 0.0) -> None:
        assert epsilon > 0, "a value without gradients would become 0 / 0"
        self._epsilon, self._initial = epsilon, initial
        self._variables: list[tf.Variable] = []
        self._sums: list[tf.Variable] = []
        self.state: Mapping[str, tf.Variable] = {}

    def build(self, variables: Mapping[str, tf.Variable]) -> None:
        """See `DenseOptimizer.build`."""
        self._variables = list(variables.values())
        self._sums = [filled_like(variable, self._initial) for variable in self._variables]
        self.state = named_state("adagrad.sum", variables, self._sums)

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> None:
        """See `DenseOptimizer.apply`."""
        assert len(gradients) == len(self._variables), "one gradient per variable"
        for variable, total, gradient in zip(self._variables, self._sums, gradients):
            tf.raw_ops.ResourceApplyAdagradV2(
                var=variable.handle,
                accum=total.handle,
                lr=learning_rate,
                epsilon=self._epsilon,
                grad=gradient * gradient_scale,
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
        self._means = [filled_like(variable) for variable in self._variables]
        self._squares = [filled_like(variable) for variable in self._variables]
        self._steps = tf.Variable([0], dtype=tf.int64, trainable=False)
        self.state = {
            "adam.steps": self._steps,
            **named_state("adam.mean", variables, self._means),
            **named_state("adam.square", variables, self._squares),
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


class DenseFtrl:
    """FTRL-Proximal with L1 and L2, as `RowFtrl` and with its arguments.

    Args:
        l1: TensorFlow's penalty times the base learning rate.
        l2: TensorFlow's penalty times the base learning rate.
        initial: What the sums start with, above 0.
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0, initial: float = 0.1) -> None:
        assert initial > 0, "a value without gradients would become 0 / 0"
        self._l1, self._l2, self._initial = l1, l2, initial
        self._variables: list[tf.Variable] = []
        self._sums: list[tf.Variable] = []
        self._held: list[tf.Variable] = []
        self.state: Mapping[str, tf.Variable] = {}

    def build(self, variables: Mapping[str, tf.Variable]) -> None:
        """See `DenseOptimizer.build`."""
        self._variables = list(variables.values())
        self._sums = [filled_like(variable, self._initial) for variable in self._variables]
        self._held = [filled_like(variable) for variable in self._variables]
        self.state = {
            **named_state("ftrl.sum", variables, self._sums),
            **named_state("ftrl.held", variables, self._held),
        }

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor,
    ) -> None:
        """See `DenseOptimizer.apply`."""
        assert len(gradients) == len(self._variables), "one gradient per variable"
        for variable, total, held, gradient in zip(
            self._variables, self._sums, self._held, gradients
        ):
            g = gradient * gradient_scale
            weights, state = ftrl_step(variable, total, held, g, learning_rate, self._l1, self._l2)
            # The sums do not depend on the learning rate, as all that is written must.
            with tf.control_dependencies([weights]):
                for changed, value in zip((variable, total, held), (weights, *state)):
                    changed.assign(value)
