"""What the studies of HSTU compare it with: features of the baselines, and operations of a case."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.hstu_baselines import GlobalRate, Popularity, candidates_of
from benchmarks.hstu_cases import HstuCase
from dlrm_v3.config import PRESETS
from dlrm_v3.data.batch import RequestBatch

STREAM = PRESETS["tiny"].stream  # 1,250 items a category


def batch() -> RequestBatch:
    """Two requests: three events and two candidates; no event and one candidate."""
    return RequestBatch(
        users=np.array([7, 3], np.int32),
        items=np.array([0, 1300, 5, 9, 1301, 2600], np.int32),
        actions=np.array([8, 2, 4, 0, 0, 0], np.int32),
        times=np.array([0, 0, 10_800, 21_600, 21_600, 21_600], np.int64),
        offsets=np.array([0, 5, 6], np.int32),
        targets=np.array([2, 1], np.int32),
        ratings=np.array([3.5, 3.0, 5.0], np.float32),
        probabilities=np.array([0.5, 0.25, 1.0], np.float32),
    )


def test_candidates_see_counts_of_their_own_history_and_category() -> None:
    found = candidates_of(batch(), STREAM)
    assert found.items.tolist() == [9, 1301, 2600]
    # Without a history, the last item is the candidate itself.
    assert found.ids.tolist() == [[9, 0, 5, 7], [1301, 1, 5, 7], [2600, 2, 2600, 3]]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.counts.tolist() == [2, 1]
    log = math.log
    expected = [
        [1, 0, log(4), log(2), log(3), log(2), 2 / 4],
        [1, 0, log(4), log(2), log(2), log(1), 1 / 3],
        [1, 0, log(1), log(1), log(1), log(1), 1 / 2],
    ]
    np.testing.assert_allclose(found.dense, expected, atol=1e-6)


def test_popularity_and_global_rate_know_the_past_alone() -> None:
    candidates = candidates_of(batch(), STREAM)
    for predictor in (Popularity(STREAM.items), GlobalRate()):
        before = predictor.predict(candidates)
        assert before.tolist() == [0.5, 0.5, 0.5]
        predictor.learn(candidates)
        after = predictor.predict(candidates)
        rate = (2 + 0.5) / (3 + 1)
        if isinstance(predictor, Popularity):
            # Before the first timestamp all priors predict alike: the first one is taken.
            np.testing.assert_allclose(after, [(y + rate) / 2 for y in candidates.labels])
        else:
            np.testing.assert_allclose(after, [rate] * 3)


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_operations_of_a_case_are_those_of_its_mask(kind: str) -> None:
    case = HstuCase(kind, longest=6, requests=3, targets=2, layers=2, width=8, heads=2, head_dim=4)
    assert case.histories.tolist() == [6, 4, 3]  # 4.5 is rounded to even
    masks = [case.mask(request) for request in range(3)]
    place = np.arange(8)
    assert masks[0][6].tolist() == (place <= 6).tolist()
    assert masks[0][7].tolist() == ((place <= 5) | (place == 7)).tolist()
    values = 2 * 4
    per_row, per_pair = 2 * 8 * 7 * values, 2 * 2 * values
    whole = sum(len(mask) * per_row + mask.sum() * per_pair for mask in masks)
    if kind == "train":
        assert case.operations() == 3 * 2 * whole
        return
    seen = sum(mask[-2:].sum() for mask in masks)
    histories = sum(case.histories)
    last = 3 * 2 * per_row + histories * 2 * 8 * 2 * values + seen * per_pair
    assert case.operations() == whole + last
