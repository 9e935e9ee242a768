"""Answers to LoadGen, value by value, and the table of times."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm_v3.benchmark.answers import request_answers, times
from dlrm_v3.benchmark.requests import CollatedRequests
from dlrm_v3.data.batch import RequestBatch
from serving.loadgen.timeline import Timeline

pytestmark = pytest.mark.one_profile

BATCH = RequestBatch(
    users=np.array([5, 2], np.int32),
    items=np.arange(7, dtype=np.int32),
    actions=np.zeros(7, np.int32),
    times=np.zeros(7, np.int64),
    offsets=np.array([0, 3, 7], np.int32),
    targets=np.array([2, 1], np.int32),
    ratings=np.array([3.5, 3.25, 5], np.float32),
    probabilities=np.zeros(3, np.float32),
)
REQUESTS = CollatedRequests(4, np.array([70, 71]), BATCH)
PREDICTIONS = np.array([0.25, 0.5, 0.75], np.float32)


@pytest.mark.parametrize(
    ("with_labels", "expected"),
    [
        (False, [[4, 70, 0.25, 0.5], [4, 71, 0.75]]),
        (True, [[4, 70, 0.25, 0.5, 1, 0, 1, 1, 2], [4, 71, 0.75, 1, 1, 1]]),
    ],
)
def test_an_answer_names_its_request(with_labels: bool, expected: list[list[float]]) -> None:
    values, sizes = request_answers(lambda batch: PREDICTIONS, with_labels)(REQUESTS)
    assert values.dtype == np.float32
    assert [part.tolist() for part in np.split(values, np.cumsum(sizes)[:-1])] == expected


def test_the_table_has_the_percentiles_of_each_time() -> None:
    timeline = Timeline()
    for number in range(101):
        with timeline.batch(number):
            timeline.waited("queue", 0, number * 1e-3)
            timeline.waited("ready", 0, 2 * number * 1e-3)
            timeline.waited("collate", 0, 1e-3)
            for name in ("total", "sparse", "sparse", "dense", "prediction"):
                timeline.waited(name, 0, 5e-3)
    table = {line.split()[0]: line.split()[1:] for line in times(timeline)[1:]}
    assert times(timeline)[0].split()[-12:] == [
        word for percentile in ("50", "80", "90", "95", "99", "99.9") for word in (percentile, "%")
    ]
    assert table["queue"] == ["150.00", "240.00", "270.00", "285.00", "297.00", "299.70"]
    assert table["batching"] == ["1.00"] * 6
    assert table["sparse"] == ["10.00"] * 6
    assert table["dense"] == table["prediction"] == table["total"] == ["5.00"] * 6
