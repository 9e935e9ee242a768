"""The figures that no model can beat, from the true probabilities of the labels.

A candidate's probability depends on its item's rating, on the quarter of its category for the user
and on the timestamp alone, so a tally by these is all that is needed, however many candidates there
are. The same for who knows the user's quarters but no item, or the items' ratings but no user, says
where the rest is to be found. This module must not know files or how events are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.metrics import auc_from_counts, binary_entropy
from dlrm_v3.config import StreamConfig
from dlrm_v3.data.layout import eval_slot, slots_of
from dlrm_v3.generate.tastes import ITEM_SHARES, TasteTable, taste_table

_DIGITS = 6  # probabilities that are equal to so many digits are ties


def label_counts(tallies: NDArray[np.int64], config: StreamConfig) -> NDArray[np.int64]:
    """Counts candidates by quarter, item rating and label.

    Args:
        tallies: int64 [slots, quarters, 10, 5], as in `UserEvents`.
        config: The settings.

    Returns:
        int64 [slots, quarters, 5, 2].
    """
    labels = np.stack([table.labels for table in _tables(config)])
    return np.stack([(tallies * ~labels).sum(axis=2), (tallies * labels).sum(axis=2)], axis=-1)


def summary(shards: Sequence[NDArray[np.int64]], config: StreamConfig) -> dict[str, Any]:
    """Computes the figures of all parts: whole, and training and inference by timestamp.

    Args:
        shards: The `label_counts` of each shard.
        config: The settings.
    """
    counts: NDArray[np.int64] = np.sum(shards, axis=0)
    truth = np.stack([table.probabilities[:, 0] for table in _tables(config)])  # [slots, 4, 5]
    by_user = np.broadcast_to((truth * ITEM_SHARES).sum(axis=2, keepdims=True), truth.shape)
    # The quarters are alike in number.
    by_item = np.broadcast_to(truth.mean(axis=1, keepdims=True), truth.shape)

    def of(slots: slice) -> dict[str, Any]:
        return {
            **figures(counts[slots], truth[slots]),
            "user_alone": figures(counts[slots], by_user[slots]),
            "item_alone": figures(counts[slots], by_item[slots]),
        }

    first, end, last = config.train_timestamps + 1, config.timestamps + 1, eval_slot(config)
    parts: dict[str, Any] = {}
    for part, start, stop in (("train", 1, first), ("inference", first, end)):
        by_timestamp = {str(slot - 1): of(slice(slot, slot + 1)) for slot in range(start, stop)}
        parts[part] = {**of(slice(start, stop)), "timestamps": by_timestamp}
    parts["eval"] = of(slice(last, last + 1))
    return parts


def figures(counts: NDArray[np.int64], chances: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Computes the figures of predictions.

    Args:
        counts: int64 [..., 2], candidates of either label.
        chances: float [...], the prediction for them.

    Returns:
        Number of candidates, rate of positives, normalised entropy, AUC, and accuracy at 0.5; those
        that are not defined are None.
    """
    levels, places = np.unique(chances.astype(np.float64).round(_DIGITS), return_inverse=True)
    negatives, positives = (
        np.bincount(places.ravel(), counts[..., label].ravel()).astype(np.int64) for label in (0, 1)
    )
    candidates = int(counts.sum())
    if not candidates:
        return {"candidates": 0}
    rate = float(positives.sum() / candidates)
    with np.errstate(divide="ignore"):
        # What never happens costs nothing, though its logarithm is infinite.
        of_positives = np.where(positives, np.log(levels), 0)
        of_negatives = np.where(negatives, np.log1p(-levels), 0)
    loss = -float(positives @ of_positives + negatives @ of_negatives) / candidates
    right = positives[levels >= 0.5].sum() + negatives[levels < 0.5].sum()
    entropy = binary_entropy(rate)
    auc = auc_from_counts(positives, negatives)
    return {
        "candidates": candidates,
        "rate": rate,
        "normalised_entropy": loss / entropy if entropy else None,
        "auc": None if math.isnan(auc) else auc,
        "accuracy": float(right / candidates),
    }


def _tables(config: StreamConfig) -> list[TasteTable]:
    """What is known of the events of each slot."""
    last = eval_slot(config)
    return [
        taste_table(config.train_timestamps if slot == last else slot - 1)
        for slot in range(slots_of(config))
    ]
