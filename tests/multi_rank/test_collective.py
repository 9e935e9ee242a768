"""Every exchange between two ranks, against values worked by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.multi_rank.workers.collective import BIG
from tests.support.processes import horovodrun


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks received."""
    folder = tmp_path_factory.mktemp("collective")
    worker = ("python3", "-m", "tests.multi_rank.workers.collective", folder)
    ended = horovodrun(2, *worker, time_limit=120)
    assert ended.code == 0, ended.output
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


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
