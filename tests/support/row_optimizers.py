"""Row optimizers with state, written as anyone would add them: see docs/extending.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dlrm.optim.row_optimizers import StateColumns

Updated = tuple[tf.Tensor, Sequence[tf.Tensor]]  # rows and state


class Adagrad:
    """row -= learning_rate * gradient / sqrt(sum of squared gradients)."""

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        return (StateColumns("adagrad.accumulator", width, initial=0.1),)

    def apply(
        self, rows: Any, state: Any, gradients: Any, learning_rate: Any, gradient_scale: float
    ) -> Updated:
        gradients = gradients * gradient_scale
        accumulator = state[0] + tf.square(gradients)
        return rows - learning_rate * gradients * tf.math.rsqrt(accumulator), (accumulator,)


class Adam:
    """Lazy Adam: a row's moments and number of steps change only when the row is looked up."""

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        return (
            StateColumns("adam.momentum", width, initial=0.0),
            StateColumns("adam.velocity", width, initial=0.0),
            StateColumns("adam.steps", 1, initial=0.0),
        )

    def apply(
        self, rows: Any, state: Any, gradients: Any, learning_rate: Any, gradient_scale: float
    ) -> Updated:
        gradients = gradients * gradient_scale
        momentum, velocity, steps = state
        momentum = 0.9 * momentum + 0.1 * gradients
        velocity = 0.99 * velocity + 0.01 * tf.square(gradients)
        steps = steps + 1.0
        change = (momentum / (1.0 - 0.9**steps)) / (tf.sqrt(velocity / (1.0 - 0.99**steps)) + 1e-3)
        return rows - learning_rate * change, (momentum, velocity, steps)


class Ftrl:
    """FTRL-Proximal with L1; the rows follow from the state and the learning rate."""

    def state_columns(self, width: int) -> tuple[StateColumns, ...]:
        return (
            StateColumns("ftrl.accumulator", width, initial=0.1),
            StateColumns("ftrl.linear", width, initial=0.0),
        )

    def apply(
        self, rows: Any, state: Any, gradients: Any, learning_rate: Any, gradient_scale: float
    ) -> Updated:
        gradients = gradients * gradient_scale
        accumulator, linear = state
        root, accumulator = tf.sqrt(accumulator), accumulator + tf.square(gradients)
        linear += gradients - (tf.sqrt(accumulator) - root) / learning_rate * rows
        kept = tf.sign(linear) * 0.01 - linear
        rows = tf.where(
            tf.abs(linear) > 0.01, learning_rate * kept / tf.sqrt(accumulator), 0.0 * learning_rate
        )
        return rows, (accumulator, linear)
