"""How a step's time grows: exponents, what is called too fast, the picture, and a real run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.growth import GrowthStep, exponent, panel, table
from benchmarks.growth_plot import plot_growth
from tests.support.processes import ROOT

SIZES = (8, 16, 64, 200)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_its_power(power: float) -> None:
    assert exponent(SIZES, [3 * size**power for size in SIZES]) == pytest.approx(power)


def test_pairs_are_counted_one_by_one() -> None:
    point = GrowthStep(batch=3, width=5, tables=4)
    vectors = 1 + point.tables
    pairs = sum(1 for a in range(vectors) for _ in range(a))
    assert point.pairs() == 3 * 5 * pairs
    # Three products of each layer, two of the first one; the interaction's output is padded.
    inputs = -(-(5 + pairs) // 8) * 8
    layers = [(13, 64), (64, 32), (32, 5), (inputs, 128), (128, 64), (64, 1)]
    products = sum(a * b * (2 if index == 0 else 3) for index, (a, b) in enumerate(layers))
    assert point.layers() == 3 * 2 * products


def test_only_what_grows_faster_than_every_part_of_its_work_is_named() -> None:
    points = [dataclasses.replace(GrowthStep(), tables=size) for size in SIZES]
    for power, faster in ((1.0, False), (1.9, False), (2.5, True)):
        found = [(size**power, size**power) for size in SIZES]
        [_, line] = table([panel("tables", points, found)])
        assert ("FASTER" in line) == faster, line
        assert f"{power:.2f}" in line


def test_every_size_grows_alone() -> None:
    for name, points in growth.axes(quick=False).items():
        base = dataclasses.asdict(GrowthStep())
        for point in points:
            assert {key for key, value in dataclasses.asdict(point).items()
                    if value != base[key]} <= {name}  # fmt: skip
        values = [getattr(point, name) for point in points]
        assert values == sorted(values)
        assert len(values) >= 2


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    points = [GrowthStep(ranks=size) for size in (1, 2, 4)]
    path = tmp_path / "new" / "growth.png"
    plot_growth(str(path), [panel("ranks", points, [(1.0, 2.0), (1.1, 2.2), (1.3, 2.4)])])
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_short_run_prints_a_line_for_each_size(tmp_path: Path) -> None:
    picture = tmp_path / "growth.png"
    command = [sys.executable, "-m", "benchmarks.growth", "--quick", "--plain", "--steps=2"]
    command += ["--size", "batch", "ranks", "--picture", str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["batch", "ranks", "picture:"]
    assert picture.exists()
