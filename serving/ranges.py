"""How a range is chosen for the values of each column, from values that arrive in blocks.

A chooser sees the inputs of all layers, in as many passes over the same samples as it needs, and
then names a range for each column. Arithmetic on arrays: models and files are unknown here.
"""

from __future__ import annotations

from typing import Callable, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PERCENTILE = 99.99  # of a column's values that are not above its range; as many are not below it
HISTOGRAM_BINS = 2048
LEVELS = 128  # of int8's magnitudes
EMPTY = (
    1e-4  # what a bin without values counts for; else losing one value would cost infinitely much
)


class RangeChooser(Protocol):
    """What the methods have in common.

    Attributes:
        passes: How often it has to see all samples.
    """

    passes: int

    def see(self, layer: str, values: Floats) -> None:
        """Takes a block of a layer's input, float32 [B, I]."""

    def end_pass(self) -> None:
        """Ends a pass over all samples."""

    def ranges(self, layer: str) -> tuple[Floats, Floats]:
        """The least and the greatest value of each column of a layer's input, float32 [I] each."""


class ExtremeRanges:
    """The least and the greatest value of each column: nothing that was seen is clipped.

    Args:
        samples: Number of samples that will be seen.
    """

    passes = 1

    def __init__(self, samples: int) -> None:
        self._ranges: dict[str, tuple[Floats, Floats]] = {}

    def see(self, layer: str, values: Floats) -> None:
        """Takes a block; see `RangeChooser`."""
        low, high = values.min(axis=0), values.max(axis=0)
        old_low, old_high = self._ranges.get(layer, (low, high))
        self._ranges[layer] = np.minimum(low, old_low), np.maximum(high, old_high)

    def end_pass(self) -> None:
        """Ends the only pass."""

    def ranges(self, layer: str) -> tuple[Floats, Floats]:
        """The range of each column; see `RangeChooser`."""
        return self._ranges[layer]


class PercentileRanges:
    """Percentiles of each column: a few values, on either side, may lie outside its range.

    Args:
        samples: Number of samples that will be seen.
        percentile: Of the values, as many percent are not above the range; the others are clipped.
    """

    passes = 1

    def __init__(self, samples: int, percentile: float = PERCENTILE) -> None:
        # The most extreme values of each column are all that decides.
        self._keep = int(samples * (100 - percentile) / 100) + 1
        self._lowest: dict[str, Floats] = {}
        self._highest: dict[str, Floats] = {}

    def see(self, layer: str, values: Floats) -> None:
        """Takes a block; see `RangeChooser`."""
        keep = self._keep
        lowest = np.concatenate([self._lowest.get(layer, values[:0]), values])
        highest = np.concatenate([self._highest.get(layer, values[:0]), values])
        if len(lowest) > keep:
            lowest = np.partition(lowest, keep - 1, axis=0)[:keep]
            highest = np.partition(highest, -keep, axis=0)[-keep:]
        self._lowest[layer], self._highest[layer] = lowest, highest

    def end_pass(self) -> None:
        """Ends the only pass."""

    def ranges(self, layer: str) -> tuple[Floats, Floats]:
        """The range of each column; see `RangeChooser`."""
        return self._lowest[layer].max(axis=0), self._highest[layer].min(axis=0)


class EntropyRanges:
    """TensorRT's entropy calibration: one range for all columns, symmetric if values have signs.

    Magnitudes are counted in bins of equal width. Of all ranges that keep the first n bins, that
    one is taken which loses the least information when it is written with 128 levels and all values
    beyond it are clipped, as the Kullback-Leibler divergence measures it.

    Reference: S. Migacz, 8-bit Inference with TensorRT, GTC 2017,
    https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf

    Args:
        samples: Number of samples that will be seen.
    """

    passes = 2

    def __init__(self, samples: int) -> None:
        self._extremes = ExtremeRanges(samples)
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._counting = False

    def see(self, layer: str, values: Floats) -> None:
        """Takes a block; see `RangeChooser`."""
        if not self._counting:
            self._extremes.see(layer, values)
            return
        span = (0, self._most(layer) or 1)
        counts, _ = np.histogram(np.abs(values), HISTOGRAM_BINS, span)
        self._counts[layer] = self._counts.get(layer, 0) + counts

    def end_pass(self) -> None:
        """Ends the pass that finds the extremes, or the one that counts."""
        self._counting = True

    def ranges(self, layer: str) -> tuple[Floats, Floats]:
        """The range, the same for each column; see `RangeChooser`."""
        low, high = self._extremes.ranges(layer)
        kept = entropy_bins(self._counts[layer]) / HISTOGRAM_BINS * self._most(layer)
        return np.full_like(low, -kept if low.min() < 0 else 0), np.full_like(high, kept)

    def _most(self, layer: str) -> float:
        low, high = self._extremes.ranges(layer)
        return float(max(-low.min(), high.max()))


def entropy_bins(counts: NDArray[np.int64]) -> int:
    """The number of bins to keep, of a histogram of magnitudes, by the least divergence.

    Args:
        counts: int64 [bins], at least `LEVELS`.
    """
    # Exact zeros, from ReLU and padding, lose nothing in any range; counted, they would hide all
    # other values.
    counts = counts.copy()
    counts[0] = 0
    return min(range(LEVELS, len(counts) + 1), key=lambda kept: _divergence(counts, kept))


def _divergence(counts: NDArray[np.int64], kept: int) -> float:
    """What is lost if the first `kept` bins are written with `LEVELS` levels and others clipped."""
    clipped = counts[:kept].astype(np.float64)
    level = np.arange(kept) * LEVELS // kept
    of_level = np.bincount(level, clipped, LEVELS)  # without what is clipped into the last bin
    clipped[-1] += counts[kept:].sum()
    there = clipped > 0
    filled = np.bincount(level, there, LEVELS)
    quantised = (of_level / np.maximum(filled, 1))[level[there]]  # spread over bins that hold any
    if not quantised.sum():
        return np.inf
    p, q = clipped[there] / clipped.sum(), quantised / quantised.sum()
    return float(np.sum(p * np.log(p / np.maximum(q, EMPTY))))


METHODS: dict[str, Callable[[int], RangeChooser]] = {
    "minmax": ExtremeRanges,
    "percentile": PercentileRanges,
    "entropy": EntropyRanges,
}
"""The methods by name; each takes the number of samples that it will see."""
