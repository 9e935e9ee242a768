"""How user-item pairs are grouped into LoadGen's samples: sizes by quantiles, the data in order.

A query of a ranking service is one user with some hundred candidate items, so a sample of LoadGen
is a run of consecutive pairs. This module must not know what a pair consists of.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files
from dlrm.formats.splitmix64 import GAMMA, mix

SMALLEST, LARGEST = 100, 700
_STEPS = 1000  # quantiles of the default rule


def default_sizes() -> NDArray[np.int64]:
    """The sizes of samples by default: 100 + 600 q^2 pairs at quantile q, 300 on average.

    Half of the samples have fewer than 250 pairs, and a tenth has more than 586.

    Returns:
        int64 [quantiles]; each is drawn equally often.
    """
    quantiles = (np.arange(_STEPS) + 0.5) / _STEPS
    return np.rint(SMALLEST + (LARGEST - SMALLEST) * quantiles**2).astype(np.int64)


def read_sizes(path: Path) -> NDArray[np.int64]:
    """Reads a file of quantiles: numbers of pairs, each drawn equally often, such as 100, 200, 200.

    Returns:
        int64 [quantiles].

    Raises:
        ValueError: The file holds something other than positive whole numbers.
    """
    words = path.read_text(encoding="utf-8", errors="replace").replace(",", " ").split()
    for word in words:
        if not word.isdecimal() or not int(word):
            raise ValueError(
                f"{path}: expected numbers of pairs, 1 or more, apart by commas or blanks, found "
                f"{word!r}"
            )
    if not words:
        raise ValueError(f"{path}: expected numbers of pairs like 100, 200, 200, found none")
    return np.array([int(word) for word in words], np.int64)


def partition(first: int, stop: int, sizes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Cuts the pairs [first, stop) into samples, in order; the last sample has what is left.

    Args:
        first: Position of the first pair.
        stop: Position behind the last pair; greater than `first`.
        sizes: int64 [quantiles], numbers of pairs, each drawn equally often.
        seed: The same seed gives the same samples, on any machine.

    Returns:
        int64 [samples + 1]: sample i holds the pairs [result[i], result[i + 1]).
    """
    assert 0 <= first < stop
    most = -(-(stop - first) // int(sizes.min()))
    words = np.arange(1, most + 1, dtype=np.uint64) * np.uint64(GAMMA) + np.uint64(seed % 2**64)
    mix(words)
    ends = first + np.cumsum(sizes[words % np.uint64(len(sizes))])
    inside = ends[ends < stop]
    return np.concatenate(([first], inside, [stop]))


def write_trace(path: Path, offsets: NDArray[np.int64]) -> None:
    """Writes a partition: a line `first, stop, pairs` for each sample, positions in the data."""
    lines = (f"{a}, {b}, {b - a}\n" for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist()))
    atomic_files.write_text(path, "".join(lines))


def read_trace(path: Path) -> NDArray[np.int64]:
    """Reads what `write_trace` wrote.

    Returns:
        int64 [samples + 1].

    Raises:
        ValueError: A line is malformed, or a sample does not begin where the one before ends.
    """
    offsets: list[int] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            words = [word.strip() for word in line.split(",")]
            numbers = [int(word) for word in words if word.isdecimal()]
            if len(words) != 3 or len(numbers) != 3 or numbers[1] - numbers[0] != numbers[2]:
                raise ValueError(
                    f"{path}: line {number}: expected `first, stop, pairs`, found {line.strip()!r}"
                )
            if offsets and offsets[-1] != numbers[0]:
                raise ValueError(
                    f"{path}: line {number}: expected a sample that begins at pair {offsets[-1]}, "
                    f"found {numbers[0]}"
                )
            offsets += numbers[:2] if not offsets else numbers[1:2]
    if not offsets:
        raise ValueError(
            f"{path}: expected a line `first, stop, pairs` for each sample, found none"
        )
    return np.array(offsets, np.int64)
