"""What a report computes from scores, labels and columns: arrays in, figures out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class ValueGroup(NamedTuple):
    """The samples that share a value of a column.

    Attributes:
        value: The value, an id.
        samples: Number of samples.
        positives: Those of label 1.
        mean: Mean predicted probability.
        auc: Area under the ROC curve; NaN unless both labels occur.
    """

    value: int
    samples: int
    positives: int
    mean: float
    auc: float


class Bin(NamedTuple):
    """Samples of neighbouring predictions.

    Attributes:
        samples: Number of samples.
        mean: Mean predicted probability.
        rate: Share of label 1.
    """

    samples: int
    mean: float
    rate: float


def groups_of(values: NDArray[np.int32], probabilities: Floats, labels: Floats) -> list[ValueGroup]:
    """Computes the figures of each group, the largest first, among equals the lowest value.

    AUCs are exact and count ties half, as `dlrm.metrics.exact_auc`, for all groups in one pass.

    Args:
        values: The column that says which group a sample is in, int32 [samples].
        probabilities: Predictions, float32 [samples].
        labels: 0 or 1, float32 [samples].
    """
    order = np.lexsort((probabilities, values))
    values, probabilities, labels = values[order], probabilities[order], labels[order]
    # A block has one value and one prediction: its samples are ties.
    new_group = np.diff(values, prepend=values[0] - 1) != 0
    new_block = new_group | (np.diff(probabilities, prepend=probabilities[0]) != 0)
    groups, blocks = np.flatnonzero(new_group), np.flatnonzero(new_block)
    positives = np.add.reduceat(labels == 1, blocks, dtype=np.int64)  # [blocks]
    negatives = np.add.reduceat(labels != 1, blocks, dtype=np.int64)
    first_blocks = np.searchsorted(blocks, groups)  # [groups]
    sizes = np.diff(first_blocks, append=len(blocks))
    below = np.cumsum(negatives) - negatives
    below -= np.repeat(below[first_blocks], sizes)  # negatives of the group that score less
    wins = np.add.reduceat(positives * (below + 0.5 * negatives), first_blocks)
    hits, misses = (np.add.reduceat(part, first_blocks) for part in (positives, negatives))
    with np.errstate(invalid="ignore"):
        aucs = wins / (hits.astype(np.float64) * misses)
    means = np.add.reduceat(probabilities, groups, dtype=np.float64) / (hits + misses)
    largest = np.lexsort((values[groups], -(hits + misses)))
    columns = (values[groups], hits + misses, hits, means, aucs)
    return [ValueGroup(*line) for line in zip(*(column[largest].tolist() for column in columns))]


def grouped_auc(groups: list[ValueGroup]) -> float:
    """The mean of the groups' AUC by samples, of groups with both labels; NaN without any.

    It says how well samples are ranked within a group, where the AUC of all samples also rewards
    telling groups from each other.
    """
    both = [group for group in groups if 0 < group.positives < group.samples]
    samples = sum(group.samples for group in both)
    return sum(group.samples * group.auc for group in both) / samples if samples else np.nan


def calibration(probabilities: Floats, labels: Floats, bins: int) -> list[Bin]:
    """Cuts the samples into bins of equal size by their predictions, the lowest first.

    Equal predictions share a bin, so a bin may be larger than others, and empty ones are left out.

    Args:
        probabilities: Predictions, float32 [samples].
        labels: 0 or 1, float32 [samples].
        bins: Number of bins.
    """
    scores = probabilities.astype(np.float64)
    edges = np.quantile(scores, np.linspace(0, 1, bins + 1))
    places = np.searchsorted(edges[1:-1], scores)
    counts = np.bincount(places, minlength=bins)
    sums = np.bincount(places, scores, minlength=bins)
    positives = np.bincount(places, labels, minlength=bins)
    return [
        Bin(int(count), float(total / count), float(hits / count))
        for count, total, hits in zip(counts, sums, positives)
        if count
    ]


def calibration_error(bins: list[Bin]) -> float:
    """The mean distance of predicted probability and share of label 1 over the bins, by samples."""
    samples = sum(part.samples for part in bins)
    return sum(part.samples * abs(part.mean - part.rate) for part in bins) / samples
