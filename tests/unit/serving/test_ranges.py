"""How ranges are chosen, against plain NumPy over all values at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serving import ranges
from serving.ranges import EntropyRanges, ExtremeRanges, PercentileRanges, entropy_bins

SEED = 20261126


def show(chooser, values, cuts=(1, 5, 600)):
    """Shows a chooser all values, in blocks of different sizes; returns the ranges."""
    for _ in range(chooser.passes):
        for block in np.split(values, cuts):
            chooser.see("top_0", block)
        chooser.end_pass()
    return chooser.ranges("top_0")


@pytest.fixture(name="values")
def random_values():
    dice = np.random.default_rng(SEED)
    spread = [0.01, 1, 30, 0]
    return (dice.standard_t(3, size=(1000, 4)) * spread + [0, 5, -1, 0]).astype(np.float32)


def test_extremes(values):
    low, high = show(ExtremeRanges(1000), values)
    assert np.array_equal(low, values.min(axis=0))
    assert np.array_equal(high, values.max(axis=0))


@pytest.mark.parametrize(
    ("percentile", "beyond"), [(99, 10), (99.85, 1), (99.99, 0), (60, 400), (0, 999)]
)
def test_percentiles_leave_so_many_values_on_each_side(values, percentile, beyond):
    values = values.copy()
    values[:, 3] = np.arange(1000)  # no ties
    low, high = show(PercentileRanges(1000, percentile), values)
    in_order = np.sort(values, axis=0)
    assert np.array_equal(low, in_order[min(beyond, 999)])
    assert np.array_equal(high, in_order[999 - beyond])


def plain_divergence(counts, kept):
    """The divergence as the talk's pseudocode computes it, with plain loops."""
    p = [float(count) for count in counts[:kept]]
    q = [0.0] * kept
    for level in range(ranges.LEVELS):
        bins = [i for i in range(kept) if i * ranges.LEVELS // kept == level]
        total = sum(p[i] for i in bins)
        p_there = [i for i in bins if p[i] or (i == kept - 1 and sum(counts[kept:]))]
        for i in p_there:
            q[i] = total / len(p_there)
    p[-1] += float(sum(counts[kept:]))
    if not sum(q):
        return math.inf
    shares = [(a / sum(p), max(b / sum(q), ranges.EMPTY)) for a, b in zip(p, q)]
    return sum(a * math.log(a / b) for a, b in shares if a)


def test_entropy_bins_are_those_of_plain_loops():
    dice = np.random.default_rng(SEED)
    for scale in (10, 40):
        counts = np.bincount(np.minimum(np.abs(dice.normal(0, scale, 3000)), 159).astype(int))
        counts = np.concatenate([counts, np.zeros(160 - len(counts), int)])
        without_zeros = [0, *counts[1:]]
        costs = [plain_divergence(without_zeros, kept) for kept in range(ranges.LEVELS, 161)]
        assert entropy_bins(counts) == ranges.LEVELS + int(np.argmin(costs))


def test_entropy_clips_what_is_rare_and_far_away():
    dice = np.random.default_rng(SEED)
    values = dice.normal(size=(1000, 4)).astype(np.float32)
    values[0, 0] = 100
    low, high = show(EntropyRanges(1000), values)
    assert len(set(low) | set(-high)) == 1  # one range, symmetric
    assert 2 < high[0] < 20


def test_entropy_of_values_without_signs_begins_at_zero():
    values = np.abs(np.random.default_rng(SEED).normal(size=(1000, 4))).astype(np.float32)
    low, _ = show(EntropyRanges(1000), values)
    assert not low.any()


@pytest.mark.parametrize("method", ranges.METHODS)
def test_a_layer_of_zeros(method):
    low, high = show(ranges.METHODS[method](1000), np.zeros((1000, 2), np.float32))
    assert not low.any()
    assert np.isfinite(high).all()
