"""One call for a whole batch, and a reason for each request that the scorer refuses."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from serving.scorer import Scorer
from serving.triton.answers import answer


class Sums:
    """A stand-in for the scorer: the sum of a sample's values; ids above 9 are refused."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def _sum(self, kind: str, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
        self.calls.append((kind, len(ids)))
        bad = np.argwhere(ids > 9)
        if len(bad):
            raise ValueError(f"sample {bad[0][0]}, table {bad[0][1]}")
        return (dense.sum(1) + ids.sum(1)).astype(np.float32)

    def score(self, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return self._sum("ids", dense, ids)

    def score_packed(self, dense: np.ndarray, words: np.ndarray) -> np.ndarray:
        return self._sum("packed", dense, words)

    def score_raw(self, dense: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self._sum("raw", dense, values)


def answers_of(requests: list[dict[str, Any]]) -> tuple[list[Any], list[tuple[str, int]]]:
    scorer = Sums()
    return answer(cast(Scorer, scorer), requests), scorer.calls


def request(count: int, value: int, inputs: str = "dense ids") -> dict[str, np.ndarray]:
    first, second = inputs.split()
    return {first: np.zeros((count, 2), np.float32), second: np.full((count, 3), value, np.int32)}


def test_requests_of_one_form_are_one_call() -> None:
    found, calls = answers_of([request(2, 1), request(1, 2), request(3, 3)])
    assert calls == [("ids", 6)]
    assert [logits.tolist() for logits in found] == [[3, 3], [6], [9, 9, 9]]


def test_every_form_goes_to_its_method() -> None:
    forms = ("dense ids", "dense packed_ids", "raw_dense raw_values")
    requests = [request(1, place, forms[place % 3]) for place in range(6)]
    found, calls = answers_of(requests)
    assert calls == [("ids", 2), ("packed", 2), ("raw", 2)]
    assert [logits.tolist() for logits in found] == [[3 * place] for place in range(6)]


def test_a_refused_request_leaves_the_others_of_its_batch_answered() -> None:
    bad = request(3, 4)
    bad["ids"][2, 1] = 10
    found, calls = answers_of([request(2, 1), bad, request(1, 2, "dense packed_ids")])
    assert found[0].tolist() == [3, 3]
    assert isinstance(found[1], ValueError)
    assert str(found[1]) == "sample 2, table 1", "the sample is not that of the request"
    assert found[2].tolist() == [6]
    assert calls == [("ids", 5), ("ids", 2), ("ids", 3), ("packed", 1)]


@pytest.mark.parametrize("names", [(), ("dense",), ("dense", "raw_values"), ("dense", "ids", "x")])
def test_other_inputs_are_named(names: tuple[str, ...]) -> None:
    found, calls = answers_of([dict.fromkeys(names, np.zeros((1, 1))), request(1, 1)])
    assert isinstance(found[0], ValueError)
    assert str(found[0]).endswith("found " + (", ".join(sorted(names)) or "none"))
    assert found[1].tolist() == [3]
    assert calls == [("ids", 1)]
