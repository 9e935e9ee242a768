"""What is answered to LoadGen, and the times of the batches.

An answer is float32 [timestamp, request, predictions (n)], and with labels it is what
`dlrm_v3.accuracy` reads. This module must not know LoadGen.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
from numpy.typing import NDArray

from dlrm_v3.accuracy import answer
from dlrm_v3.benchmark.requests import CollatedRequests
from dlrm_v3.config import POSITIVE_RATING
from dlrm_v3.data.batch import RequestBatch
from serving.loadgen.system import Answers
from serving.loadgen.timeline import Timeline

_PERCENTILES = (50, 80, 90, 95, 99, 99.9)
_SPANS = {
    "total": ("total",),
    "queue": ("queue", "ready"),
    "batching": ("collate",),
    "sparse": ("sparse",),
    "dense": ("dense",),
    "prediction": ("prediction",),
}  # the reference's names of times, and the spans that each is the sum of


def request_answers(
    score: Callable[[RequestBatch], NDArray[np.float32]], with_labels: bool
) -> Callable[[CollatedRequests], Answers]:
    """Makes a function that answers requests.

    Args:
        score: Returns the predictions of a batch, float32 [C].
        with_labels: Whether an answer holds labels and weights too.
    """

    def one(
        timestamp: int,
        number: int,
        predictions: NDArray[np.float32],
        ratings: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        if with_labels:
            labels = (ratings >= POSITIVE_RATING).astype(np.float32)
            return answer(timestamp, number, predictions, labels)
        return np.concatenate([np.array([timestamp, number], np.float32), predictions])

    def answers(requests: CollatedRequests) -> Answers:
        batch = requests.batch
        cuts = np.cumsum(batch.targets)[:-1]
        parts = zip(
            requests.numbers.tolist(),
            np.split(score(batch), cuts),
            np.split(batch.ratings, cuts),
        )
        values = [one(requests.timestamp, *part) for part in parts]
        return Answers(np.concatenate(values), np.array([len(value) for value in values]))

    return answers


def times(timeline: Timeline) -> list[str]:
    """The times of the batches at percentiles, as lines of a table in milliseconds."""
    head = [f"{'ms of a batch':<14}", *(f"{f'{p:g} %':>9}" for p in _PERCENTILES)]
    lines = ["".join(head)]
    for name, spans in _SPANS.items():
        milliseconds = np.percentile(1e3 * timeline.seconds(*spans), _PERCENTILES)
        lines.append(f"{name:<14}" + "".join(f"{value:>9.2f}" for value in milliseconds))
    return lines
