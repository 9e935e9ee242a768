"""Row optimizers that give each row, or each value of it, a learning rate of its own.

g is the gradient of a row, `RowStep.gradient`: the vectors of a row are summed before
anything is squared. Epsilon is outside the root.

Works on tensors alone; `row_optimizers` has the interface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from dlrm.optim.row_optimizers import RowStep, StateColumns


class RowAdagrad:
    """Adagrad (Duchi et al., 2011): each value has the sum of the squares of its gradients.

    sum += g^2; row -= learning_rate * g / (sqrt(sum) + epsilon).

    Source: FBGEMM's `EXACT_ADAGRAD`, and TensorFlow's `ResourceSparseApplyAdagradV2`.

    Args:
        epsilon: Least denominator; above 0, as a value whose gradients were all 0 divides by it.
        initial: What the sums start with.
    """

    def __init__(self, epsilon: float = 1e-8, initial: float = 0.0) -> None:
        assert epsilon > 0, "a value without gradients would become 0 / 0"
        self._epsilon, self._initial = epsilon, initial

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """One sum for each value of the row."""
        return (StateColumns("adagrad.sum", width, self._initial),)

    def apply(
        self, rows: tf.Tensor, state: Sequence[tf.Tensor], step: RowStep
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """See `RowOptimizer.apply`."""
        g = step.gradient
        total = state[0] + tf.square(g)
        return rows - step.learning_rate * g / (tf.sqrt(total) + self._epsilon), (total,)


class RowWiseAdagrad:
    """Adagrad with one value of state for a row: the sum of its gradients' mean squares.

    sum += mean(g^2); row -= learning_rate * g / (sqrt(sum) + epsilon). The state takes 1 / W of
    the memory that Adagrad's takes.

    Source: FBGEMM's `EXACT_ROWWISE_ADAGRAD`.

    Args:
        epsilon: Least denominator; above 0, as a row whose gradients were all 0 divides by it.
        initial: What the sums start with.
    """

    def __init__(self, epsilon: float = 1e-8, initial: float = 0.0) -> None:
        assert epsilon > 0, "a row without gradients would become 0 / 0"
        self._epsilon, self._initial = epsilon, initial

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """One sum for each row, whatever its width."""
        return (StateColumns("rowwise_adagrad.sum", 1, self._initial),)

    def apply(
        self, rows: tf.Tensor, state: Sequence[tf.Tensor], step: RowStep
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """See `RowOptimizer.apply`."""
        scale = tf.convert_to_tensor(step.gradient_scale, step.gradients.dtype)
        squares = tf.reduce_mean(tf.square(step.gradients), axis=1, keepdims=True)  # [U, 1]
        total = state[0] + squares * tf.square(scale)
        # The factor of a row first: one pass over the gradients instead of three.
        factor = step.learning_rate * scale / (tf.sqrt(total) + self._epsilon)  # [U, 1]
        return rows - factor * step.gradients, (total,)


class RowAdam:
    """Adam (Kingma and Ba, 2015), lazy, with the number of a row's own steps as part of its state.

    mean += (1 - beta1) * (g - mean); square += (1 - beta2) * (g^2 - square); t += 1;
    row -= learning_rate * mean / (1 - beta1^t) / (sqrt(square / (1 - beta2^t)) + epsilon).

    Source: FBGEMM's `ADAM` with `use_rowwise_bias_correction`, and TensorFlow Addons' `LazyAdam`
    where a row is in every batch. Without that option t counts the steps of the training: then a
    row that is first seen late moves by (1 - beta1) / sqrt(1 - beta2), some three times, too much.
    In float32, t stays at 2^24, where either correction has long become 1.

    Args:
        betas: The share of each mean that a step keeps, both below 1.
        epsilon: Least denominator, above 0.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        assert epsilon > 0, "a value without gradients would become 0 / 0"
        self._betas, self._epsilon = betas, epsilon

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """Two means for each value of the row, and one number of steps."""
        return (
            StateColumns("adam.mean", width, initial=0.0),
            StateColumns("adam.square", width, initial=0.0),
            StateColumns("adam.steps", 1, initial=0.0),
        )

    def apply(
        self, rows: tf.Tensor, state: Sequence[tf.Tensor], step: RowStep
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """See `RowOptimizer.apply`."""
        g = step.gradient
        mean, square, steps = state
        mean += (1 - self._betas[0]) * (g - mean)
        square += (1 - self._betas[1]) * (tf.square(g) - square)
        steps += 1.0
        mean_share, square_share = (_not_decayed(beta, steps) for beta in self._betas)  # [U, 1]
        denominator = tf.sqrt(square / square_share) + self._epsilon
        return rows - step.learning_rate / mean_share * mean / denominator, (mean, square, steps)


class RowFtrl:
    """FTRL-Proximal (McMahan et al., 2013) with L1 and L2.

    sum += g^2; row = the least point of linear * x + sqrt(sum) / 2 * x^2 + l2 * x^2 + l1 * |x|,
    where linear collects the rates times the gradients, less what sqrt(sum) grew by times the row.

    Source: TensorFlow's `ResourceApplyFtrlV2` with `multiply_linear_by_lr` and a power of -0.5,
    with two differences. The penalties do not follow the learning rate: they would vanish with it
    at the end of a schedule. And linear starts where the row has its initial value; TensorFlow
    starts it at 0, which moves every row to 0 at its first step. To that end the state is not
    linear itself but linear + sqrt(sum) * row, what the penalties hold back: it starts at 0, and
    stays there without penalties.

    Args:
        l1: TensorFlow's penalty times the base learning rate.
        l2: TensorFlow's penalty times the base learning rate.
        initial: What the sums start with, above 0.
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0, initial: float = 0.1) -> None:
        assert initial > 0, "a value without gradients would become 0 / 0"
        self._l1, self._l2, self._initial = l1, l2, initial

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        """Two values for each value of the row."""
        return (
            StateColumns("ftrl.sum", width, self._initial),
            StateColumns("ftrl.held", width, initial=0.0),
        )

    def apply(
        self, rows: tf.Tensor, state: Sequence[tf.Tensor], step: RowStep
    ) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
        """See `RowOptimizer.apply`."""
        total, held = state
        rate = step.learning_rate
        return ftrl_step(rows, total, held, step.gradient, rate, self._l1, self._l2)


def ftrl_step(
    weights: tf.Tensor,
    total: tf.Tensor,
    held: tf.Tensor,
    gradients: tf.Tensor,
    learning_rate: tf.Tensor,
    l1: float,
    l2: float,
) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """Computes a step of `RowFtrl` for weights of any shape.

    Args:
        weights: float32, the weights before the step.
        total: float32, the sums of squares, of their shape.
        held: float32, what the penalties held back, of their shape.
        gradients: float32, of their shape.
        learning_rate: float32 [].
        l1: See `RowFtrl`.
        l2: See `RowFtrl`.

    Returns:
        The weights after the step; and the two parts of the state.
    """
    total = total + tf.square(gradients)  # a new tensor, also of a variable
    root = tf.sqrt(total)
    linear = held - root * weights + learning_rate * gradients
    # Beyond the L1 penalty; within, the least point is 0.
    beyond = linear - tf.clip_by_value(linear, -l1, l1)
    weights = -beyond / (root + 2 * l2)
    return weights, (total, linear + root * weights)


def _not_decayed(beta: float, steps: tf.Tensor) -> tf.Tensor:
    """1 - beta^steps; in float32, the difference itself would keep five digits of 1 - 0.999."""
    return -tf.math.expm1(steps * math.log(beta)) if beta else tf.ones_like(steps)
