"""The quality of predictions for the candidates of requests: NE, accuracy, AUC and GAUC.

NumPy only. It must not know models, files or ranks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.metrics import binary_entropy, exact_auc

_LEAST = 1e-12  # a probability of 0 that was wrong would cost infinitely much; as torchrec's NE

Float = NDArray[np.floating[Any]]


class RankingQuality(NamedTuple):
    """The figures of predictions, over all candidates; NaN where they are not defined.

    Attributes:
        normalised_entropy: Log loss divided by the entropy of the mean label; less is better.
        accuracy: Share of the candidates whose prediction is on their label's side of 0.5.
        auc: Probability that a candidate of label 1 scores above one of label 0; a tie counts half.
        gauc: Mean over requests of the AUC among their own candidates, where both labels occur.
        log_loss: Mean binary cross-entropy, in nats.
        candidates: Number of candidates.
        requests: Number of requests.
    """

    normalised_entropy: float
    accuracy: float
    auc: float
    gauc: float
    log_loss: float
    candidates: int
    requests: int


def ranking_quality(
    predictions: Float, labels: Float, candidates: NDArray[np.integer[Any]]
) -> RankingQuality:
    """Computes the figures of predictions.

    Args:
        predictions: Probabilities, float [C], request after request; at least one.
        labels: Labels 0 or 1, float [C].
        candidates: Number of candidates of each request, [requests]; their sum is C.
    """
    assert len(predictions) == len(labels) == candidates.sum()
    scores = predictions.astype(np.float64)
    side = np.where(labels == 1, scores, 1 - scores)
    log_loss = -float(np.mean(np.log(np.clip(side, _LEAST, 1))))
    entropy = binary_entropy(float(np.mean(labels, dtype=np.float64)))
    return RankingQuality(
        normalised_entropy=log_loss / entropy if entropy else math.nan,
        accuracy=float(np.mean((scores >= 0.5) == (labels == 1))),
        auc=exact_auc(predictions, labels),
        gauc=mean_auc(predictions, labels, candidates),
        log_loss=log_loss,
        candidates=len(labels),
        requests=int(np.count_nonzero(candidates)),
    )


def mean_auc(predictions: Float, labels: Float, candidates: NDArray[np.integer[Any]]) -> float:
    """Computes the mean of `request_aucs`; NaN if no request has both labels."""
    aucs = request_aucs(predictions, labels, candidates)
    both = np.isfinite(aucs)
    return float(np.mean(aucs[both])) if both.any() else math.nan


def request_aucs(
    predictions: Float, labels: Float, candidates: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Computes the AUC within each request.

    Args:
        predictions: Probabilities or logits, float [C], request after request.
        labels: Labels 0 or 1, float [C].
        candidates: Number of candidates of each request, [requests].

    Returns:
        float64 [requests]; NaN for a request without both labels.
    """
    if not len(predictions):
        return np.full(len(candidates), np.nan)
    requests = np.repeat(np.arange(len(candidates)), candidates)
    order = np.lexsort((predictions, requests))
    requests, predictions = requests[order], predictions[order]
    positive = labels[order] == 1
    first = np.cumsum(candidates) - candidates  # [requests]
    # The negatives before each candidate, in its request: below it, or its ties before it.
    before = np.concatenate(([0], np.cumsum(~positive)))  # [C + 1]
    # Runs of equal predictions in one request: their positives beat half of their negatives.
    starts = np.ones(len(predictions), bool)
    starts[1:] = (requests[1:] != requests[:-1]) | (predictions[1:] != predictions[:-1])
    run_starts = np.flatnonzero(starts)
    runs = np.cumsum(starts) - 1  # [C], the run of each candidate
    run_ends = np.append(run_starts[1:], len(predictions))
    middle = (before[run_starts] + before[run_ends]) / 2  # [runs]
    wins = np.where(positive, middle[runs] - before[first[requests]], 0)
    positives, won = (
        np.bincount(requests, weights, len(candidates)) for weights in (positive, wins)
    )
    pairs = positives * (candidates - positives)
    return np.divide(won, pairs, out=np.full(len(candidates), np.nan), where=pairs > 0)
