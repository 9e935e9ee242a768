"""Samples of LoadGen: sizes by quantiles, the pairs in order, the same seed the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.loadgen import partition

PAIRS = 1_000_000


def test_sizes_reach_from_100_to_700_with_a_mean_of_300() -> None:
    sizes = partition.default_sizes()
    assert sizes.min() == 100
    assert sizes.max() in (699, 700)
    assert sizes.mean() == pytest.approx(300, abs=0.1)
    assert np.median(sizes) == pytest.approx(250, abs=1)


def test_samples_cover_the_pairs_in_order() -> None:
    offsets = partition.partition(7, 7 + PAIRS, partition.default_sizes(), seed=123)
    sizes = np.diff(offsets)
    assert offsets[0] == 7
    assert offsets[-1] == 7 + PAIRS
    assert sizes[:-1].min() >= 100
    assert sizes.max() <= 700
    assert 1 <= sizes[-1] <= 700  # what is left
    assert sizes.mean() == pytest.approx(300, rel=0.02)


def test_the_seed_alone_decides() -> None:
    sizes = partition.default_sizes()
    first, again = (partition.partition(0, PAIRS, sizes, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = partition.partition(0, PAIRS, sizes, seed=6)
    assert not np.array_equal(first[:100], other[:100])


def test_sizes_are_drawn_by_splitmix64() -> None:
    """The same numbers in Python's integers."""

    def word(counter: int, seed: int) -> int:
        z = (seed + counter * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    sizes = np.array([2, 3, 5, 7])
    offsets = partition.partition(0, 1000, sizes, seed=9)
    expected = [int(sizes[word(counter, 9) % 4]) for counter in range(1, 51)]
    assert np.diff(offsets)[:50].tolist() == expected


def test_one_pair_is_one_sample() -> None:
    assert partition.partition(0, 1, np.array([100]), seed=1).tolist() == [0, 1]
    assert partition.partition(0, 200, np.array([100]), seed=1).tolist() == [0, 100, 200]


def test_a_file_of_quantiles_gives_the_sizes(tmp_path: Path) -> None:
    path = tmp_path / "quantiles.txt"
    path.write_text("100, 100, 200,200\n300 700\n")
    assert partition.read_sizes(path).tolist() == [100, 100, 200, 200, 300, 700]


@pytest.mark.parametrize("text", ["100, many", "100, 0", "-5", "1.5", ""])
def test_a_bad_file_of_quantiles_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "quantiles.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"quantiles\.txt: expected numbers of pairs"):
        partition.read_sizes(path)


def test_a_trace_holds_the_partition(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    offsets = np.array([5, 105, 405])
    partition.write_trace(path, offsets)
    assert path.read_text() == "5, 105, 100\n105, 405, 300\n"
    np.testing.assert_array_equal(partition.read_trace(path), offsets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0, 100, 100\n100, 200\n", "line 2: expected `first, stop, pairs`"),
        ("0, 100, 99\n", "line 1: expected `first, stop, pairs`"),
        ("0, 100, 100\n101, 201, 100\n", "line 2: expected a sample that begins at pair 100"),
        ("", "found none"),
    ],
)
def test_a_bad_trace_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        partition.read_trace(path)
