"""Ranks that are threads of one process, for tests of what several ranks compute together.

Exchanges happen eagerly, between functions that are not compiled.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, TypeVar

import tensorflow as tf

from dlrm.distributed.collective import Collective

T = TypeVar("T")
TIME_LIMIT = 60  # seconds that a rank waits for the others


class ThreadCollective(Collective):
    """One of several ranks that are threads.

    Args:
        rank: This rank.
        size: Number of ranks.
        barrier: The barrier at which all ranks meet.
        offered: The value that each rank offers the others, by rank.
    """

    def __init__(
        self, rank: int, size: int, barrier: threading.Barrier, offered: list[Any]
    ) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._offered = barrier, offered

    def alltoall(
        self, tensor: tf.Tensor, splits: tf.Tensor, name: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Collective.alltoall`."""
        offered = self._exchange(tf.split(tensor, splits.numpy()))
        received = [parts[self.rank] for parts in offered]
        return tf.concat(received, 0), tf.constant([len(part) for part in received], tf.int32)

    def gather_text(self, text: str) -> list[str]:
        """See `Collective.gather_text`."""
        return self._exchange(text)

    def _exchange(self, value: T) -> list[T]:
        """The values of all ranks, in rank order."""
        self._offered[self.rank] = value
        self._barrier.wait(TIME_LIMIT)
        values = list(self._offered)
        self._barrier.wait(TIME_LIMIT)  # no rank offers again before all have taken these
        return values


def on_ranks(size: int, action: Callable[[Collective], T]) -> list[T]:
    """Runs the action once per rank, all at the same time; returns the results in rank order."""
    barrier, offered = threading.Barrier(size), [None] * size

    def run(rank: int) -> T:
        try:
            return action(ThreadCollective(rank, size, barrier, offered))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        ranks = [pool.submit(run, rank) for rank in range(size)]
    failures = [rank.exception() for rank in ranks]
    # Ranks that only waited for one that failed say less than that one.
    failures.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    for error in failures:
        if error:
            raise error
    return [rank.result() for rank in ranks]
