"""Days of a drifting log, and two small ones appended as a user would."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks.days import Days, main
from benchmarks.drifting_days import DriftOptions, drifting_days

SMALL = DriftOptions(live_ids=(300, 40), strength=2.0)


def columns(text: str) -> list[list[str]]:
    return [list(column) for column in zip(*(line.split("\t") for line in text.splitlines()))]


def test_ids_come_and_go_as_said() -> None:
    days = list(itertools.islice(drifting_days(DriftOptions(), 4000, seed=3), 3))
    seen = [set(columns(day.text)[4]) for day in days]
    first = columns(days[1].text)
    known = [np.isin(first[4 + t], columns(days[0].text)[4 + t]).mean() for t in range(4)]
    assert days[0].fresh == 0
    assert 0.02 < days[1].fresh < 0.25
    # What day 1 did not hold is new, or rare.
    assert np.mean(known) < 1 - days[1].fresh
    assert len(seen[2] - seen[1] - seen[0]) > 0.05 * len(seen[2])
    again = next(iter(drifting_days(DriftOptions(), 4000, seed=3)))
    assert again == days[0]


def test_the_best_auc_is_that_of_the_true_logits() -> None:
    """Without effects of ids or numbers to tell rows apart, no model is better than chance."""
    chance = DriftOptions(num_dense=0, strength=0.0)
    assert next(drifting_days(chance, 2000, seed=1)).best_auc == pytest.approx(0.5)
    weak, strong = (
        next(drifting_days(DriftOptions(strength=s), 20_000, seed=1)).best_auc for s in (0.5, 2.0)
    )
    assert 0.55 < weak < strong < 0.95


@pytest.mark.runs
def test_two_days_are_appended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole cycle: logs, dictionaries, training, the next day's log, and nothing done twice."""
    days = Days(tmp_path, 3000, 5, SMALL)
    best = days.write_logs(3)
    first, second = (days.result("appended", day) for day in (1, 2))
    print(first, second, best)
    assert second.rows > first.rows + 20
    assert second.checkpoint_bytes > first.checkpoint_bytes
    assert 0.55 < first.auc < best[1] + 0.03
    assert 0.55 < second.auc < best[2] + 0.03
    assert first.samples == second.samples == 3000 // 256 * 256
    output = (tmp_path / "appended" / "2" / "output.txt").read_text()
    assert f"{first.rows} rows as trained, {second.rows - first.rows} new ones" in output
    assert days.result("appended", 2) == second
    assert capsys.readouterr().out.count("train 3,000") == 4  # each day, and the one after it


@pytest.mark.slow
def test_all_ways_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "days.png"
    command = [str(tmp_path / "days"), "--days=2", "--rows=4000", f"--picture={picture}"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("  2  ")] == [
        "appended", "retrained", "old", "dynamic",
    ]  # fmt: skip
    assert picture.stat().st_size > 10_000
