"""Batches as the step takes them, read and prepared by a thread while the step before computes.

NumPy alone; it must not know the model or the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.data.read_ahead import read_ahead
from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.data.stream import RequestStream
from dlrm_v3.model.inputs import ModelInputs, make_inputs
from dlrm_v3.train.plan import Share

LOOKAHEAD = 2  # batches that are read before they are used


class Prepared(NamedTuple):
    """A rank's requests of a global batch.

    Attributes:
        share: Which requests.
        inputs: The model's inputs: B requests with n tokens, of which C are candidates.
        ratings: float32 [C].
        probabilities: float32 [C], as in `RequestBatch`.
    """

    share: Share
    inputs: ModelInputs
    ratings: NDArray[np.float32]
    probabilities: NDArray[np.float32]


ReadShares = Callable[[Iterator[Share]], Iterator[Prepared]]


def reader(stream: RequestStream, max_history: int, multiple: int = 1) -> ReadShares:
    """What reads and prepares the batches of shares, ahead of their use.

    Args:
        stream: The requests.
        max_history: Most events of a history.
        multiple: The number of tokens is padded to a multiple of it.
    """
    items_per_category = stream.config.items_per_category

    def prepare(share: Share) -> Prepared:
        batch = stream.batch(share.users, share.timestamp, share.part, max_history)
        # A rank without requests takes part in the exchanges all the same.
        inputs = make_inputs(batch if len(batch.users) else NOTHING, items_per_category, multiple)
        return Prepared(share, inputs, batch.ratings, batch.probabilities)

    return lambda shares: read_ahead(prepare, shares, lookahead=LOOKAHEAD)


def _request_without_candidates() -> RequestBatch:
    """One event of one user: it asks for nothing, so its loss and its gradients are 0."""
    zero, none = np.zeros(1, np.int32), np.empty(0, np.float32)
    time = np.zeros(1, np.int64)
    return RequestBatch(zero, zero, zero, time, np.array([0, 1], np.int32), zero, none, none)


NOTHING = _request_without_candidates()
