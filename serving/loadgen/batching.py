"""Queued queries and the batches made of them: pure bookkeeping between threads.

A batch is whatever waits when a worker is free, up to a limit: nothing waits for a batch to fill,
so under little load batches are small and quick, and under much load they grow. It must not know
LoadGen or scorers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The part of the latency bound that scoring one batch may take: a query waits for the batch before
# its own and for its own, and the rest is for bursts.
_SHARE_OF_BOUND = 0.25
_ADDED_AT_ONCE = 1 << 12  # queries; of Offline there are millions
_NEWEST = 0.1  # weight of the newest batch in the measured rate


class Query(NamedTuple):
    """One sample to score.

    Attributes:
        id: The number under which the answer is expected.
        sample: Index of the sample.
        issued: When it came, in seconds of `time.perf_counter`.
    """

    id: int
    sample: int
    issued: float = 0.0


class BatchLimit:
    """The largest batch: a fixed number of pairs, and what is scored in time.

    Args:
        max_pairs: The fixed number.
        bound: The latency bound in seconds; None if there is none.
    """

    def __init__(self, max_pairs: int, bound: float | None) -> None:
        self._max_pairs = max_pairs
        self._bound = bound
        self._rate = 0.0  # pairs a second within a batch

    def record(self, pairs: int, seconds: float) -> None:
        """Learns how long a batch took."""
        rate = pairs / max(seconds, 1e-9)
        self._rate += (rate - self._rate) * (_NEWEST if self._rate else 1.0)

    def pairs(self) -> int:
        """The number of pairs that a batch may have now; a single sample may have more."""
        if self._bound is None or not self._rate:
            return self._max_pairs
        return min(self._max_pairs, max(1, int(self._rate * self._bound * _SHARE_OF_BOUND)))


class BatchQueue:
    """Queries in the order in which they came, taken in batches by several workers.

    Args:
        sizes: Number of pairs of each sample, int64 [samples].
        limit: The largest batch.
        groups: The group of each sample, int64 [samples]; a batch is of one group. None if all
            samples go together.
    """

    def __init__(
        self, sizes: NDArray[np.int64], limit: BatchLimit, groups: NDArray[np.int64] | None = None
    ) -> None:
        self._sizes = sizes.tolist()
        self._groups = (np.zeros_like(sizes) if groups is None else groups).tolist()
        self._limit = limit
        self._waiting: deque[Query] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, queries: Iterable[Query]) -> None:
        """Adds queries and wakes workers, which begin with the first while the rest is added."""
        rest = iter(queries)
        while added := list(islice(rest, _ADDED_AT_ONCE)):
            with self._changed:
                self._waiting.extend(added)
                self._changed.notify(len(added))

    def take(self) -> list[Query]:
        """Waits for queries, and takes as many of the oldest as the limit allows, at least one.

        Returns:
            The batch; empty once the queue is closed and nothing waits any more.
        """
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            batch: list[Query] = []
            left = self._limit.pairs()
            while self._waiting:
                sample = self._waiting[0].sample
                left -= self._sizes[sample]
                if batch and (left < 0 or self._groups[sample] != self._groups[batch[0].sample]):
                    break
                batch.append(self._waiting.popleft())
            return batch

    def close(self) -> None:
        """Lets the workers end when nothing waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
