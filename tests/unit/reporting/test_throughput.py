"""The average throughput of a run, against sums by hand."""

from __future__ import annotations

import math

import pytest

from dlrm.reporting.throughput import Throughput

# Steps and seconds between console lines, of a run of 25 steps in 60 seconds: the last 3 steps took
# 2 seconds, and no line came after them.
INTERVALS = [(10, 40.0), (2, 10.0), (10, 8.0)]


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (0, (2 + 10) * 100 / (10 + 8)),  # without the first interval
        (10, (25 - 10) * 100 / (60 - 40)),
        (12, (25 - 12) * 100 / (60 - 50)),
        (25, (2 + 10) * 100 / (10 + 8)),  # nothing would be left
        (1000, (2 + 10) * 100 / (10 + 8)),
    ],
)
def test_average(warmup: int, expected: float) -> None:
    throughput = Throughput(100, warmup)
    for steps, seconds in INTERVALS:
        throughput.add(steps, seconds)
    assert throughput.average(25, 60.0) == pytest.approx(expected)


def test_few_lines_or_none() -> None:
    throughput = Throughput(100)
    assert throughput.average(6, 3.0) == 200
    assert math.isnan(throughput.average(0, 0.0))
    throughput.add(4, 1.0)
    assert throughput.average(6, 3.0) == 400
