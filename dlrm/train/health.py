"""What all ranks must know of a step before they take it: its figures, and when it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

IDS_OUTSIDE, NOT_FINITE = "ids outside their table", "a loss or gradient that is not finite"


class Health(NamedTuple):
    """The figures that all ranks need after a step; they are averaged together with the gradients.

    Attributes:
        loss: float32 [], mean loss.
        bad_ids: float32 [], number of ids outside their table.
        vector_gradients: float32 [], sum of all gradients of the vectors. A value among them that
            is not finite makes it so too.
        signal: float32 [], above 0 if a rank was asked to stop.
    """

    loss: tf.Tensor
    bad_ids: tf.Tensor
    vector_gradients: tf.Tensor
    signal: tf.Tensor

    def pack(self) -> tf.Tensor:
        """Stacks the values into one tensor, float32 [4]."""
        return tf.stack(list(self))

    @classmethod
    def unpack(cls, values: tf.Tensor) -> Health:
        """Undoes `pack`."""
        return cls(*tf.unstack(values))


HEALTH_BYTES = tf.float32.size * len(Health._fields)


def checks(health: Health, gradients: Sequence[tf.Tensor]) -> list[tf.Operation]:
    """Operations that fail, with `IDS_OUTSIDE` or `NOT_FINITE`, if a step must not be taken.

    Args:
        health: The figures of all ranks.
        gradients: The dense weights' gradients, of all ranks.
    """
    values = [health.pack(), *gradients]
    # The sums are tested together: one small operation instead of one for each weight.
    finite = tf.reduce_all(tf.math.is_finite(tf.stack([tf.reduce_sum(v) for v in values])))
    return [
        tf.debugging.Assert(health.bad_ids == 0, [IDS_OUTSIDE]),
        tf.debugging.Assert(finite, [NOT_FINITE]),
    ]
