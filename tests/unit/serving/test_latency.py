"""Percentiles, the table, JSON and the picture of latencies."""

from __future__ import annotations

import math
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from serving.latency import PERCENTILES, Latency, latency_table, measure_in_turn, plot_latency

# Independent of TensorFlow, Keras, NumPy's version and SOK.
pytestmark = pytest.mark.one_profile


def test_percentiles_are_the_nearest_ranks() -> None:
    """Of 1 to 1000 ms, p percent do not exceed 10 p ms."""
    milliseconds = np.random.default_rng(1).permutation(np.arange(1, 1001))
    latency = Latency.of("scorer", 64, 1e-3 * milliseconds)
    expected = {50.0: 500, 90.0: 900, 95.0: 950, 99.0: 990, 99.9: 999}
    assert {p: round(1e3 * value) for p, value in latency.percentiles.items()} == expected
    assert latency.mean == pytest.approx(0.5005)
    assert latency.requests == 1000
    assert latency.samples_per_second == pytest.approx(64 / 0.5005)


@pytest.mark.parametrize("count", [1, 2, 3, 200])
def test_few_requests(count: int) -> None:
    """A percentile is the smallest value that enough of the requests do not exceed."""
    print("seed", count)
    seconds = np.random.default_rng(count).random(count)
    found = Latency.of("a", 1, seconds).percentiles
    for percentile in PERCENTILES:
        rank = math.ceil(percentile / 100 * count - 1e-9)
        assert found[percentile] == sorted(seconds)[rank - 1]


def test_requests_that_ran_at_the_same_time() -> None:
    latency = Latency.of("server", 10, [0.5, 0.5, 0.5, 0.5], wall_seconds=0.5)
    assert latency.samples_per_second == pytest.approx(80)


def test_table_and_json() -> None:
    one = Latency.of("SavedModel", 1, [0.001] * 9 + [0.011])
    many = Latency.of("scorer", 4096, [0.25, 0.25])
    assert latency_table([one, many]).splitlines() == [
        "batch  variant     mean ms    p50    p90    p95    p99  p99.9  samples/s",
        "    1  SavedModel    2.000  1.000  1.000  11.00  11.00  11.00        500",
        "4,096  scorer        250.0  250.0  250.0  250.0  250.0  250.0     16,384",
    ]
    assert one.to_json() == {
        "variant": "SavedModel",
        "batch_size": 1,
        "requests": 10,
        "mean_ms": pytest.approx(2.0),
        **{f"p{p}_ms": pytest.approx(v) for p, v in ((50, 1), (90, 1), (95, 11), (99, 11))},
        "p99.9_ms": pytest.approx(11.0),
        "samples_per_second": pytest.approx(500.0),
    }


def test_the_picture(tmp_path: Path) -> None:
    from matplotlib.image import imread

    measured = [
        Latency.of(variant, size, np.full(3, size * factor))
        for size in (1, 64)
        for variant, factor in (("slow", 1e-3), ("fast", 1e-5))
    ]
    plot_latency(tmp_path / "latency.png", measured, "title")
    assert [path.name for path in tmp_path.iterdir()] == ["latency.png"]
    height, width, _ = imread(tmp_path / "latency.png").shape
    assert (width, height) == (1080, 840)


def test_variants_are_measured_in_turn() -> None:
    """The same numbers for all, and no variant long before another."""
    calls: list[tuple[str, int]] = []
    variants = {
        name: lambda number, name=name: calls.append((name, number)) for name in ("a", "b", "c")
    }
    seconds = measure_in_turn(variants, 50, warmup=3)
    assert all(len(values) == 50 and (values > 0).all() for values in seconds.values())
    assert [name for name, _ in calls[:9]] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    turns = [(name, [n for _, n in group]) for name, group in groupby(calls[9:], lambda c: c[0])]
    for name in variants:
        # The first request of a turn is made twice, and counts the second time.
        numbers = [n for turn, group in turns if turn == name for n in group[1:]]
        assert numbers == list(range(50))
    assert [name for name, _ in turns] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_what_a_request_takes_is_what_is_measured() -> None:
    seconds = measure_in_turn({"slow": lambda _: time.sleep(0.01)}, 5, warmup=0)
    assert 0.01 <= Latency.of("slow", 1, seconds["slow"]).percentiles[50.0] < 0.1
