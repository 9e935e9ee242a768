"""Evaluation over all ranks: what the predictions of requests add up to, and the figures of it.

All that is kept are sums, so the ranks' can be added, and so can those of several evaluations.
Scores are counted in bins, from which the AUC follows; the other figures are exact. This module
works on NumPy arrays; it must not know models or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.metrics import Evaluation, auc_from_counts, binary_entropy
from dlrm_v3.quality import RankingQuality, request_aucs

BINS = 1 << 16  # the AUC is exact to 0.0001 or better
LOGIT_RANGE = 32.0  # odds of 1e14 to 1; scores beyond count as tied
SUMS = 4  # behind the bins: losses, right sides, AUCs of requests, requests with both labels
LENGTH = 2 * BINS + SUMS + 1  # and the number of requests


def tally(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.floating[Any]],
    candidates: NDArray[np.integer[Any]],
) -> NDArray[np.float64]:
    """What predictions add to the sums of an evaluation, float64 [LENGTH].

    The first BINS numbers count candidates of label 0 by their logit, the next those of label 1.
    Float64 holds such counts exactly, up to 2^53.

    Args:
        logits: float [C], request after request.
        labels: Labels 0 or 1, float [C].
        candidates: Number of candidates of each request, [requests].
    """
    scores = logits.astype(np.float64)
    positive = labels == 1
    total = np.zeros(LENGTH)
    # A NaN has no bin; it is in the losses, where the reader of the sums meets it.
    clipped = np.clip(np.nan_to_num(scores), -LOGIT_RANGE, LOGIT_RANGE)
    bins = ((clipped + LOGIT_RANGE) * ((BINS - 1) / (2 * LOGIT_RANGE))).astype(np.int64)
    total[: 2 * BINS] = np.bincount(bins + BINS * positive, minlength=2 * BINS)
    aucs = request_aucs(scores, labels, candidates)
    with np.errstate(invalid="ignore"):  # of a NaN
        losses = np.logaddexp(0, scores) - scores * positive
    total[2 * BINS :] = (
        np.sum(losses),
        np.count_nonzero((scores >= 0) == positive),
        np.nansum(aucs),
        np.count_nonzero(np.isfinite(aucs)),
        np.count_nonzero(candidates),
    )
    return total


def quality(total: NDArray[np.float64]) -> RankingQuality:
    """The figures of the sums that `tally` makes; NaN where they are not defined."""
    negatives, positives = total[: 2 * BINS].astype(np.int64).reshape(2, BINS)
    losses, right, aucs, both, requests = total[2 * BINS :]
    count = int(negatives.sum() + positives.sum())
    if not count or math.isnan(losses):
        nan = math.nan
        return RankingQuality(nan, nan, nan, nan, nan, count, int(requests))
    entropy = binary_entropy(float(positives.sum()) / count)
    return RankingQuality(
        normalised_entropy=losses / count / entropy if entropy else math.nan,
        accuracy=right / count,
        auc=auc_from_counts(positives, negatives),
        gauc=aucs / both if both else math.nan,
        log_loss=losses / count,
        candidates=count,
        requests=int(requests),
    )


def true_logits(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logits of true probabilities, no larger than `LOGIT_RANGE` either way."""
    p = probabilities.astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(p) - np.log1p(-p), -LOGIT_RANGE, LOGIT_RANGE)


class Figures(NamedTuple):
    """How well candidates were predicted, and how well they could have been.

    Attributes:
        model: Of the model's predictions.
        best: Of the true probabilities, as the best prediction that there is.
    """

    model: RankingQuality
    best: RankingQuality


@dataclass(frozen=True)
class StreamEvaluation(Evaluation):
    """An evaluation of one timestamp; the figures of `Evaluation` are those of its window.

    Attributes:
        timestamp: The timestamp that was predicted.
        window: Of the candidates of this evaluation.
        lifetime: Of those of all evaluations since the training began.
    """

    timestamp: int
    window: Figures
    lifetime: Figures


class StreamTally:
    """The sums of an evaluation: of the model's predictions and of the true probabilities."""

    def __init__(self) -> None:
        self.sums = np.zeros((2, LENGTH))

    def add(
        self,
        logits: NDArray[np.float32],
        labels: NDArray[np.float32],
        probabilities: NDArray[np.float32],
        candidates: NDArray[np.int32],
    ) -> None:
        """Counts a batch of this rank.

        Args:
            logits: float32 [C].
            labels: float32 [C].
            probabilities: float32 [C], true ones; NaN where they are not known.
            candidates: int32 [B], number of candidates of each request.
        """
        self.sums[0] += tally(logits, labels, candidates)
        self.sums[1] += tally(true_logits(probabilities), labels, candidates)


def figures(sums: NDArray[np.float64]) -> Figures:
    """The figures of the sums of a `StreamTally`, [2, LENGTH], or of several added up."""
    return Figures(*map(quality, sums))
