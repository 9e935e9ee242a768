"""The table of a step's parts, worked out by hand, and its files."""

from __future__ import annotations

import json

import pytest

from dlrm.reporting.step_breakdown import RankTimes, StepBreakdown
from dlrm.reporting.step_breakdown_files import FILE_NAMES, write


@pytest.fixture
def breakdown() -> StepBreakdown:
    """Two ranks and two steps. Rank 1 computes twice as long, so rank 0 waits in the exchange."""
    ranks = []
    for forward, exchange, sent in ((0.010, 0.014, 4e6), (0.020, 0.004, 8e6)):
        rank = RankTimes(plain=[0.018, 0.020, 0.022], products=0.005)
        for more in (0.0, 0.002):
            rank.add({"forward": forward, "exchange": exchange + more}, {"exchange": int(sent)})
        ranks.append(rank)
    return StepBreakdown(ranks)


def test_rows_are_means_over_steps_and_ranks(breakdown: StepBreakdown) -> None:
    forward, exchange = breakdown.rows
    assert (forward.part, exchange.part) == ("forward", "exchange")
    assert forward.mean == pytest.approx(0.015)
    assert forward.share == pytest.approx(0.6)
    assert exchange.mean == pytest.approx(0.010)
    assert exchange.median == pytest.approx(0.010)  # of 4, 6, 14 and 16 ms
    assert exchange.high == pytest.approx(0.016)
    assert forward.imbalance == pytest.approx(2.0)
    assert exchange.imbalance == pytest.approx(3.0)
    assert forward.sent is None


def test_the_rate_leaves_out_what_a_rank_waits(breakdown: StepBreakdown) -> None:
    _, exchange = breakdown.rows
    assert exchange.sent == pytest.approx(6e6)
    # Rank 1 comes last and waits for nobody: 4 and 6 ms.
    assert exchange.rate == pytest.approx(6e6 / 0.005)


def test_the_table_compares_with_the_step_as_it_is(breakdown: StepBreakdown) -> None:
    lines = breakdown.table().splitlines()
    assert lines[0] == "Step breakdown: 2 steps taken in parts, on 2 ranks"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert cells[2] == ["forward", "15.00", "60.0%", "15.00", "20.00", "2.00", "", ""]
    assert cells[3] == ["exchange", "10.00", "40.0%", "10.00", "16.00", "3.00", "6.000", "1.200"]
    assert cells[4][:3] == ["all parts", "25.00", "100.0%"]
    assert len({len(line) for line in lines if "|" in line}) == 1, "columns stand below each other"
    assert "20.00 ms (median of 6); in parts, which do not overlap: 1.25 times" in lines[-2]
    assert "5.00 ms, 25% of the step" in lines[-1]


def test_times_travel_as_text() -> None:
    times = RankTimes()
    times.add({"route": 0.1}, {"route": 7})
    assert RankTimes.from_text(times.to_text()) == times


def test_a_rank_alone_sends_nothing_at_no_rate() -> None:
    times = RankTimes()
    times.add({"exchange": 0.0}, {"exchange": 0})
    (row,) = StepBreakdown([times]).rows
    assert (row.sent, row.rate, row.imbalance, row.share) == (0, None, 1.0, 0.0)


def test_writes_table_times_and_plot(breakdown: StepBreakdown, tmp_path) -> None:
    write(str(tmp_path), breakdown)
    table, times, plot = (tmp_path / name for name in FILE_NAMES)
    assert table.read_text() == breakdown.table() + "\n"
    ranks = json.loads(times.read_text())["ranks"]
    assert [RankTimes(**rank) for rank in ranks] == breakdown.ranks
    assert plot.read_bytes().startswith(b"\x89PNG")
