"""The quality of a click predictor: AUC, log loss and normalised entropy.

NumPy only. Works on counts and rates, independent of models, ranks and the origin of the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MLPERF_SHARES = (0.99, 0.999)
"""The shares of the float32 model's AUC that MLPerf asks for: ordinary and high accuracy."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation over all ranks' test samples.

    Attributes:
        step: Training steps done before it.
        auc: Area under the ROC curve; NaN if all labels are the same.
        log_loss: Mean binary cross-entropy, in nats.
        normalised_entropy: Log loss divided by the entropy of the mean label (He et al., Practical
            Lessons from Predicting Clicks on Ads at Facebook, 2014); NaN if that entropy is zero.
        samples: Number of test samples, each counted once.
        seconds: Wall time of the evaluation.
    """

    step: int
    auc: float
    log_loss: float
    normalised_entropy: float
    samples: int
    seconds: float


@dataclass(frozen=True)
class Quality:
    """The figures of all predictions of a model, exact.

    Attributes:
        auc: As in `Evaluation`; samples are ties only if their predictions are equal.
        log_loss: As in `Evaluation`.
        normalised_entropy: As in `Evaluation`.
        samples: Number of samples.
    """

    auc: float
    log_loss: float
    normalised_entropy: float
    samples: int


def quality_of(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> Quality:
    """Computes the figures of predictions that are all in memory.

    Args:
        logits: float32 [samples], at least one.
        labels: float32 [samples], 0 or 1.
    """
    scores = logits.astype(np.float64)
    log_loss = float(np.mean(np.logaddexp(0, scores) - scores * labels))
    entropy = binary_entropy(float(np.mean(labels, dtype=np.float64)))
    return Quality(
        auc=exact_auc(logits, labels),
        log_loss=log_loss,
        normalised_entropy=log_loss / entropy if entropy else math.nan,
        samples=len(logits),
    )


def exact_auc(scores: NDArray[np.floating[Any]], labels: NDArray[np.floating[Any]]) -> float:
    """Computes the area under the ROC curve over all samples; equal scores count half.

    Args:
        scores: Predictions or logits, float [samples].
        labels: Labels 0 or 1, float [samples].

    Returns:
        The area; NaN unless both labels occur.
    """
    _, places = np.unique(scores, return_inverse=True)
    positives = np.bincount(places[labels == 1], minlength=int(places.max()) + 1)
    negatives = np.bincount(places) - positives
    return auc_from_counts(positives, negatives)


def probabilities(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The probability of a click for each logit, float32 of the same shape."""
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and 1 / infinity is 0
        return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def auc_from_counts(positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> float:
    """Computes the area under the ROC curve by trapezoids; samples that share a bin are ties.

    Args:
        positives: int64 [bins], samples of label 1 by rising score.
        negatives: int64 [bins], samples of label 0 by rising score.

    Returns:
        The probability that a positive scores above a negative, where a tie counts half; NaN
        unless there are both.
    """
    pairs = float(positives.sum()) * float(negatives.sum())
    if not pairs:
        return math.nan
    negatives_below = np.cumsum(negatives) - negatives  # [bins]
    # Terms of one sign: float64 keeps some 12 digits even of a billion samples.
    wins = positives.astype(np.float64) @ (negatives_below + 0.5 * negatives)
    return float(wins / pairs)


def binary_entropy(mean: float) -> float:
    """Computes the entropy, in nats, of a yes/no variable that is yes at the rate `mean`."""
    return -sum(p * math.log(p) for p in (mean, 1 - mean) if p > 0)
