"""How good the model is: AUC, log loss and normalised entropy over all ranks' test samples.

Works on logits and labels alone; knows nothing of models or data. Counts are 64-bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.distributed.collective import Collective

LOGIT_RANGE = 32.0  # odds of 1e14 to 1; scores beyond count as tied


@dataclass(frozen=True)
class Evaluation:
    """One evaluation's figures.

    Attributes:
        step: training steps done before it.
        auc: area under the ROC curve; NaN where the labels are all the same.
        log_loss: mean binary cross-entropy, in nats.
        normalised_entropy: log loss over the entropy of the mean label (He et al., Practical
            Lessons from Predicting Clicks on Ads at Facebook, 2014); NaN where that is zero.
        samples: test samples, each counted once.
        seconds: how long it took.
    """

    step: int
    auc: float
    log_loss: float
    normalised_entropy: float
    samples: int
    seconds: float


class Evaluator:
    """Collects scored samples on every rank and reduces them once.

    The ROC curve is taken at `thresholds` steps of the probability, as in the SOK benchmark, and
    as many steps of the logit, so that scores crowded near 0 or 1 are told apart too.

    Args:
        thresholds: steps on each of the two scales.
        collective: the ranks that evaluate together.
    """

    def __init__(self, thresholds: int, collective: Collective) -> None:
        self._thresholds = thresholds
        self._bins = 2 * thresholds - 1
        self._collective = collective
        # One row of counts for each label.
        self._counts = tf.Variable(tf.zeros([2 * self._bins], tf.int64), trainable=False)
        self._loss = tf.Variable(tf.zeros([], tf.float64), trainable=False)

    def reset(self) -> None:
        """Forgets all samples."""
        self._counts.assign(tf.zeros_like(self._counts))
        self._loss.assign(0.0)

    def add(self, logits: tf.Tensor, labels: tf.Tensor, valid: tf.Tensor) -> None:
        """Counts a batch; can be traced.

        Args:
            logits: float32 [batch].
            labels: float32 [batch], 0 or 1.
            valid: int32 [], the first so many samples count.
        """
        logits, labels = logits[:valid], labels[:valid]
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
        self._loss.assign_add(tf.reduce_sum(tf.cast(losses, tf.float64)))
        steps = self._thresholds - 1
        # A NaN has no bin; it is in the loss, where `result` meets it.
        logits = tf.where(tf.math.is_nan(logits), tf.zeros_like(logits), logits)
        # Both terms never fall as the logit rises, so their sum numbers the cells between the
        # thresholds of both scales in order.
        by_probability = tf.cast(tf.sigmoid(logits) * steps, tf.int32)
        clipped = tf.clip_by_value(logits, -LOGIT_RANGE, LOGIT_RANGE)
        by_logit = tf.cast((clipped + LOGIT_RANGE) * (steps / (2 * LOGIT_RANGE)), tf.int32)
        bins = by_probability + by_logit + self._bins * tf.cast(labels, tf.int32)
        counts = tf.math.bincount(bins, minlength=2 * self._bins, maxlength=2 * self._bins)
        self._counts.assign_add(tf.cast(counts, tf.int64))

    def result(self, step: int, seconds: float) -> Evaluation:
        """The figures over all ranks; the same on each of them."""
        counts = self._collective.sum(self._counts, name="evaluation.counts").numpy()
        loss = self._collective.sum(self._loss, name="evaluation.loss").numpy()
        negatives, positives = counts.reshape(2, self._bins)
        samples = int(counts.sum())
        log_loss = float(loss) / samples if samples else math.nan
        entropy = binary_entropy(int(positives.sum()) / samples) if samples else 0.0
        return Evaluation(
            step=step,
            auc=auc_from_counts(positives, negatives),
            log_loss=log_loss,
            normalised_entropy=log_loss / entropy if entropy else math.nan,
            samples=samples,
            seconds=seconds,
        )


def auc_from_counts(positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> float:
    """Area under the ROC curve by trapezoids: samples that share a bin count as tied.

    Args:
        positives: int64 [bins], samples of label 1, by rising score.
        negatives: int64 [bins], samples of label 0.

    Returns:
        The chance that a positive scores above a negative, ties as half; NaN without both labels.
    """
    pairs = float(positives.sum()) * float(negatives.sum())
    if not pairs:
        return math.nan
    negatives_below = np.cumsum(negatives) - negatives
    # Each sum has a few thousand terms, so float64 keeps some 12 digits at any sample count.
    wins = positives.astype(np.float64) @ (negatives_below + 0.5 * negatives)
    return float(wins / pairs)


def binary_entropy(mean: float) -> float:
    """Entropy of a yes/no variable in nats."""
    return -sum(p * math.log(p) for p in (mean, 1 - mean) if p > 0)
