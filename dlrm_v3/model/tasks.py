"""The tasks of the model's heads: labels, losses and predictions.

Shapes: C candidates, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dlrm_v3.config import POSITIVE_RATING

TASKS = ("rating", "stars")
"""Is the rating 3.5 or more (cross-entropy); the rating itself (squared error)."""


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuses what is no task.

    Raises:
        ValueError: A task is unknown or stands twice, or there is none.
    """
    if not tasks or set(tasks) - set(TASKS) or len(set(tasks)) < len(tasks):
        raise ValueError(f"expected tasks out of {', '.join(TASKS)}, found {list(tasks)}")


def task_labels(ratings: Any, tasks: Sequence[str]) -> tf.Tensor:
    """Derives each task's label from the ratings: [C] -> float32 [C, T]."""
    ratings = tf.cast(ratings, tf.float32)
    of_task = {"rating": tf.cast(ratings >= POSITIVE_RATING, tf.float32), "stars": ratings}
    return tf.stack([of_task[task] for task in tasks], axis=1)


def task_loss(
    logits: tf.Tensor, labels: tf.Tensor, tasks: Sequence[str], task_weight: float, count: Any
) -> tf.Tensor:
    """Sums the loss over candidates and tasks.

    Args:
        logits: float32 [C, T].
        labels: float32 [C, T].
        tasks: Names of the tasks.
        task_weight: Factor on the loss.
        count: Number of candidates that the sum is divided by: that of the global batch, so that
            the losses and gradients of its parts add up to those of the whole.

    Returns:
        float32 scalar.
    """
    of_task = {
        "rating": tf.nn.sigmoid_cross_entropy_with_logits,
        "stars": lambda labels, logits: tf.square(logits - labels),
    }
    losses = [
        tf.reduce_sum(of_task[task](labels=labels[:, column], logits=logits[:, column]))
        for column, task in enumerate(tasks)
    ]
    return tf.add_n(losses) * task_weight / tf.cast(count, tf.float32)


def predictions(logits: tf.Tensor, tasks: Sequence[str]) -> tf.Tensor:
    """Turns logits into probabilities, or into what a regression predicts; float32 [C, T]."""
    of_task = {"rating": tf.sigmoid, "stars": tf.identity}
    return tf.stack([of_task[task](logits[:, i]) for i, task in enumerate(tasks)], axis=1)
