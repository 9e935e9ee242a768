"""The quality of a click predictor: AUC, log loss and normalised entropy.

NumPy only. Works on counts and rates, independent of models, ranks and the origin of the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    # Each sum has a few thousand terms, so float64 keeps some 12 digits at any sample count.
    wins = positives.astype(np.float64) @ (negatives_below + 0.5 * negatives)
    return float(wins / pairs)


def binary_entropy(mean: float) -> float:
    """Computes the entropy, in nats, of a yes/no variable that is yes at the rate `mean`."""
    return -sum(p * math.log(p) for p in (mean, 1 - mean) if p > 0)
