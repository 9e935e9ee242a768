"""The figures that no model can beat, from the true probabilities of the labels.

A candidate's probability depends on its item's rating, on the quarter of its category for the user
and on the timestamp alone, so a tally by these is all that is needed, however many candidates there
are. This module must not know files or how events are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.metrics import auc_from_counts, binary_entropy
from dlrm_v3.config import StreamConfig
from dlrm_v3.data.layout import eval_slot
from dlrm_v3.generate.tastes import TENTHS, taste_table

LEVELS = TENTHS + 1
"""A probability is one of 0, 0.1, ..., 1."""


def label_counts(tallies: NDArray[np.int64], config: StreamConfig) -> NDArray[np.int64]:
    """Counts candidates by the probability of their label, and by their label.

    Args:
        tallies: int64 [slots, quarters, 10, 5], as in `UserEvents`.
        config: The settings.

    Returns:
        int64 [slots, LEVELS, 2].
    """
    counts = np.zeros((len(tallies), LEVELS, 2), np.int64)
    for slot, tally in enumerate(tallies):
        table = taste_table(config.train_timestamps if slot == eval_slot(config) else slot - 1)
        levels = np.rint(table.probabilities * TENTHS).astype(np.int64)
        np.add.at(counts[slot], (levels, table.labels.astype(np.int64)), tally)
    return counts


def figures(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Computes the figures of predicting the true probabilities.

    Args:
        counts: int64 [LEVELS, 2], candidates by probability and label.

    Returns:
        Number of candidates, rate of positives, normalised entropy, AUC, and accuracy at 0.5; those
        that are not defined are None.
    """
    negatives, positives = counts[:, 0], counts[:, 1]
    candidates = int(counts.sum())
    if not candidates:
        return {"candidates": 0}
    levels = np.arange(LEVELS) / TENTHS
    rate = float(positives.sum() / candidates)
    with np.errstate(divide="ignore"):
        likelihoods = (
            np.where(positives, np.log(levels), 0),
            np.where(negatives, np.log1p(-levels), 0),
        )
    loss = -float(positives @ likelihoods[0] + negatives @ likelihoods[1]) / candidates
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


def summary(shards: Sequence[NDArray[np.int64]], config: StreamConfig) -> dict[str, Any]:
    """Computes the figures of all parts: whole, and training and inference by timestamp.

    Args:
        shards: The `label_counts` of each shard.
        config: The settings.
    """
    counts = np.sum(shards, axis=0)
    first, end = config.train_timestamps + 1, config.timestamps + 1
    parts: dict[str, Any] = {}
    for part, slots in (("train", range(1, first)), ("inference", range(first, end))):
        parts[part] = figures(counts[slots].sum(axis=0))
        parts[part]["timestamps"] = {str(slot - 1): figures(counts[slot]) for slot in slots}
    parts["eval"] = figures(counts[eval_slot(config)])
    return parts
