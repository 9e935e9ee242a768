"""Evaluation over all ranks: collects scored samples, and makes the figures of them.

Works on logits and labels, without a model or data. Counts are 64-bit.
"""

from __future__ import annotations

import math

import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.metrics import Evaluation, auc_from_counts, binary_entropy

LOGIT_RANGE = 32.0  # odds of 1e14 to 1; scores beyond count as tied


class Evaluator:
    """Collects scored samples on every rank and reduces them once.

    The ROC curve has `thresholds` thresholds on the probability scale, as in the SOK benchmark,
    and as many on the logit scale, which resolves scores that crowd near 0 or 1.

    Args:
        thresholds: Number of thresholds on each of the two scales.
        collective: The ranks that evaluate together.
    """

    def __init__(self, thresholds: int, collective: Collective) -> None:
        self._thresholds = thresholds
        self._bins = 2 * thresholds - 1
        self._collective = collective
        # [2 * bins]: the counts of label 0, then those of label 1.
        self._counts = tf.Variable(tf.zeros([2 * self._bins], tf.int64), trainable=False)
        self._loss = tf.Variable(tf.zeros([], tf.float64), trainable=False)
        floats = tf.TensorSpec([None], tf.float32)
        signature = [floats, floats, tf.TensorSpec([], tf.int32)]
        self._compiled_add = tf.function(self._add, input_signature=signature, autograph=False)

    def reset(self) -> None:
        """Forgets all samples."""
        self._counts.assign(tf.zeros_like(self._counts))
        self._loss.assign(0.0)

    def add(self, logits: tf.Tensor, labels: tf.Tensor, valid: int | tf.Tensor) -> None:
        """Counts a batch.

        Args:
            logits: float32 [batch].
            labels: float32 [batch], 0 or 1.
            valid: Number of leading samples that are real; the rest is padding.
        """
        self._compiled_add(logits, labels, valid)

    def result(self, step: int, seconds: float) -> Evaluation:
        """Makes the figures over all ranks, which are the same on each. All call it together.

        Args:
            step: Training steps done before the evaluation.
            seconds: How long the evaluation took.
        """
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

    def _add(self, logits: tf.Tensor, labels: tf.Tensor, valid: tf.Tensor) -> None:
        """The graph of `add`."""
        logits, labels = logits[:valid], labels[:valid]  # [valid], as all below
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
        self._loss.assign_add(tf.reduce_sum(tf.cast(losses, tf.float64)))
        steps = self._thresholds - 1
        # A NaN has no bin; it is in the loss, where the caller of `result` meets it.
        logits = tf.where(tf.math.is_nan(logits), tf.zeros_like(logits), logits)
        # Both terms never fall as the logit rises, so their sum numbers the cells between the
        # thresholds of both scales in order.
        by_probability = tf.cast(tf.sigmoid(logits) * steps, tf.int32)
        clipped = tf.clip_by_value(logits, -LOGIT_RANGE, LOGIT_RANGE)
        by_logit = tf.cast((clipped + LOGIT_RANGE) * (steps / (2 * LOGIT_RANGE)), tf.int32)
        bins = by_probability + by_logit + self._bins * tf.cast(labels, tf.int32)
        counts = tf.math.bincount(bins, minlength=2 * self._bins, maxlength=2 * self._bins)
        self._counts.assign_add(tf.cast(counts, tf.int64))
