"""The requests of the inference timestamps in the order in which they are run.

Time goes on: requests of a timestamp run before those of the next, in an order that the seed alone
decides. So LoadGen's queries get the requests in this order, whichever samples LoadGen names. This
module must not know LoadGen or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.data.stream import RequestStream

_PART = "inference"


class CollatedRequests(NamedTuple):
    """Requests of one timestamp, ready to be scored.

    Attributes:
        timestamp: The timestamp, counted from the first one of inference.
        numbers: int64 [B], the number of each request among those of its timestamp.
        batch: What they consist of.
    """

    timestamp: int
    numbers: NDArray[np.int64]
    batch: RequestBatch


class RequestLibrary:
    """Queries, each of one request, as LoadGen's samples; the data stays in its mapped files.

    Args:
        stream: The data.
        max_history: Most events of a history.
        share: Share of the requests of each timestamp, the first users', that is run.
        seed: Decides the order within a timestamp.
        queries: Number of queries; None for one pass over the requests. Of more, each timestamp's
            requests run several times before the next timestamp's, and what is left of the last
            pass runs at the last timestamp.

    Attributes:
        requests: Number of different requests.
        sizes: Number of candidates of each query, int64 [queries].
        groups: The timestamp of each query, counted from the first one of inference, int64
            [queries].

    Raises:
        ValueError: The share has no request, or a file is broken.
    """

    def __init__(
        self,
        stream: RequestStream,
        max_history: int,
        share: float,
        seed: int,
        queries: int | None = None,
    ) -> None:
        self._stream, self._max_history = stream, max_history
        config = stream.config
        self._first = config.train_timestamps
        self._users = [
            stream.users(timestamp, _PART) for timestamp in range(self._first, config.timestamps)
        ]
        generator = np.random.default_rng(seed)
        orders = [generator.permutation(int(len(users) * share)) for users in self._users]
        self.requests = sum(map(len, orders))
        if not self.requests:
            raise ValueError(
                f"expected requests, found none in a share of {share:g} of "
                f"{sum(map(len, self._users)):,}; raise --dataset-percentage"
            )
        self.groups, self._numbers = _queries(orders, queries or self.requests)
        candidates = config.inference_candidates
        self.sizes: NDArray[np.int64] = np.full(len(self.groups), candidates, np.int64)
        self._next = 0

    def order(self) -> Iterator[int]:
        """Yields the queries' numbers in order, again and again."""
        while True:
            number = self._next
            self._next = (number + 1) % len(self.sizes)
            yield number

    def load(self, samples: Sequence[int]) -> None:
        """Begins with the first query again; what a batch needs is read when it is collated."""
        del samples
        self._next = 0

    def unload(self, samples: Sequence[int]) -> None:
        """Does nothing, as nothing was loaded."""

    def gather(self, samples: Sequence[int]) -> CollatedRequests:
        """Reads the requests of queries of one timestamp.

        Raises:
            ValueError: A file is broken, or a request has no candidates.
        """
        timestamp, numbers = int(self.groups[samples[0]]), self._numbers[samples]
        assert (self.groups[samples] == timestamp).all()
        users = self._users[timestamp][numbers]
        batch = self._stream.batch(users, self._first + timestamp, _PART, self._max_history)
        return CollatedRequests(timestamp, numbers, batch)


def _queries(
    orders: list[NDArray[np.int64]], queries: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The timestamp and the request's number of each query, int64 [queries] both."""
    requests = sum(map(len, orders))
    passes = max(1, queries // requests)
    counts = [passes * len(order) for order in orders]
    last = max(timestamp for timestamp, count in enumerate(counts) if count)
    counts[last] += max(0, queries - passes * requests)
    numbers = np.concatenate([np.resize(order, count) for order, count in zip(orders, counts)])
    return np.repeat(np.arange(len(orders)), counts)[:queries], numbers[:queries]
