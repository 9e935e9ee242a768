"""Every exchange between two ranks, with and without Horovod, against values worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dlrm.distributed.host_collective import EXCHANGE_VARIABLE
from tests.multi_rank.workers.collective import BIG
from tests.support.processes import horovodrun

WAYS = {"horovod": "HorovodCollective", "": "HostCollective"}  # DLRM_EXCHANGE: what it makes


def exchanged(folder: Path, ranks: int, way: str) -> list[dict[str, Any]]:
    """What each rank received."""
    worker = ("python3", "-m", "tests.multi_rank.workers.collective", folder)
    ended = horovodrun(ranks, *worker, time_limit=120, env={EXCHANGE_VARIABLE: way})
    assert ended.code == 0, ended.output
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module", params=WAYS)
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two ranks received."""
    found = exchanged(tmp_path_factory.mktemp("collective"), 2, request.param)
    assert {one["kind"] for one in found} == {WAYS[request.param]}
    return found


def test_each_process_is_a_rank(found: list[dict[str, Any]]) -> None:
    assert [(one["rank"], one["size"]) for one in found] == [(0, 2), (1, 2)]


def test_tensors_are_averaged_and_integers_added_exactly(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["means"] == [[0.5, 1.0], 2.0]
        assert one["sum"] == 2 * BIG + 1


def test_rows_arrive_in_order_of_their_source(found: list[dict[str, Any]]) -> None:
    """bfloat16 travels too, which Horovod itself cannot exchange."""
    assert [(one["rows"], one["counts"]) for one in found] == [
        ([0, 10, 10], [1, 2]),
        ([0, 10], [1, 1]),
    ]
    assert {one["type"] for one in found} == {"bfloat16"}


def test_variables_take_rank_0s_values(found: list[dict[str, Any]]) -> None:
    assert [one["broadcast"] for one in found] == [[7.0], [7.0]]


def test_texts_are_gathered_in_rank_order(found: list[dict[str, Any]]) -> None:
    assert [one["texts"] for one in found] == [["", "é"], ["", "é"]]


def test_an_error_of_one_rank_is_every_ranks(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["together"] == "rank 1: label.bin: expected 8 bytes, found 4"
        assert one["agree"].startswith("seed must be the same on every rank, found 0 on rank 0")


def test_three_ranks_of_one_host_average_in_parts(tmp_path: Path) -> None:
    """Three values for three ranks, and their exchanges as a profile shows them."""
    found = exchanged(tmp_path, 3, "")
    for one in found:
        assert one["means"] == [[1.0, 2.0], 4.0]
        assert one["sum"] == 3 * BIG + 3
        assert one["texts"] == ["", "é", "éé"]
    assert [one["rows"] for one in found] == [[0, 10, 10, 20, 20, 20], [0, 10, 20], [0, 10, 20]]
    events = json.loads((tmp_path / "timeline.json").read_text())
    assert [event["name"] for event in events] == ["mean", "mean.means", "rows"]
    # Rank 0 sends a float32 to each other rank, twice, and then two bfloat16 values.
    assert [event["args"]["bytes"] for event in events] == [8, 8, 8]
