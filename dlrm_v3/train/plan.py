"""Which requests a step takes, in which order, and on which rank.

Arithmetic on users' ids; batches are read by the stream. This module must not know models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import Position
from dlrm.formats import splitmix64
from dlrm_v3.data.stream import RequestStream


class Share(NamedTuple):
    """One rank's requests of a global batch.

    Attributes:
        timestamp: The timestamp of the requests.
        part: "train", "eval" or "inference", as of the stream.
        number: The batch, counted from 0 within its timestamp.
        users: int32 [B], this rank's users; there may be none.
    """

    timestamp: int
    part: str
    number: int
    users: NDArray[np.int32]


class StreamPlan:
    """The batches of one rank.

    Within a timestamp, requests come in an order that the seed and the timestamp alone determine.
    Global batch s of G takes those from s * G on; it is cut into `size` nearly equal parts in
    order, one for each rank. The last batch of a timestamp may be smaller, and then a rank may have
    no request of it.

    Args:
        stream: The requests.
        global_batch: Requests of a step, over all ranks.
        seed: Together with a timestamp it gives the order.
        rank: This process, from 0.
        size: Number of ranks.
        first: The first timestamp to train on.
        last: The last timestamp to train on.

    Attributes:
        first: As given.
        last: As given.
    """

    def __init__(
        self,
        stream: RequestStream,
        global_batch: int,
        seed: int,
        rank: int,
        size: int,
        *,
        first: int,
        last: int,
    ) -> None:
        self.first, self.last = first, last
        self._stream = stream
        self._global_batch = global_batch
        self._seed = seed
        self._rank, self._size = rank, size
        requests = [len(stream.users(t, "train")) for t in range(first, last + 1)]
        steps = -(-np.array(requests, np.int64) // global_batch)
        self._ends = np.cumsum(steps)  # steps done at the end of each timestamp

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return int(self._ends[-1])

    def position(self, step: int) -> Position:
        """Where the training stands after `step` steps."""
        done = int(np.searchsorted(self._ends, step, side="right"))
        begun = int(self._ends[done - 1]) if done else 0
        return Position(step, self.first + done, (step - begun) * self._global_batch)

    def training(self, step: int) -> Iterator[Share]:
        """This rank's share of every batch from `step` on."""
        position = self.position(step)
        begun = position.next_sample // self._global_batch
        for timestamp in range(position.epoch, self.last + 1):
            yield from self.shares(timestamp, "train", begun)
            begun = 0

    def evaluation(self, timestamp: int, most: int = 0) -> Iterator[Share]:
        """This rank's share of the batches that the training has not come to.

        Args:
            timestamp: A timestamp for training, or the one behind the last.
            most: Most batches; 0 for all.
        """
        last = timestamp == self._stream.config.train_timestamps
        return self.shares(timestamp, "eval" if last else "train", 0, most)

    def shares(self, timestamp: int, part: str, begun: int = 0, most: int = 0) -> Iterator[Share]:
        """This rank's share of the batches of a timestamp.

        Args:
            timestamp: The timestamp.
            part: Its part.
            begun: Number of the first batch.
            most: Most batches; 0 for all.
        """
        users = in_order(self._stream.users(timestamp, part), self._seed, timestamp)
        batches = -(-len(users) // self._global_batch)
        for number in range(begun, min(batches, begun + most) if most else batches):
            whole = users[number * self._global_batch : (number + 1) * self._global_batch]
            cuts = [len(whole) * rank // self._size for rank in (self._rank, self._rank + 1)]
            yield Share(timestamp, part, number, whole[slice(*cuts)])


def in_order(users: NDArray[np.int32], seed: int, timestamp: int) -> NDArray[np.int32]:
    """The users in the order of a hash of the seed, the timestamp and the user."""
    key = np.array([(seed << 32) + timestamp & (1 << 64) - 1], np.uint64)
    splitmix64.mix(key)
    with np.errstate(over="ignore"):
        words = key + (users.astype(np.uint64) + np.uint64(1)) * np.uint64(splitmix64.GAMMA)
    splitmix64.mix(words)
    return users[np.argsort(words, kind="stable")]


def dropout_key(seed: int, step: int) -> int:
    """A number that gives the dropout of a step, int64."""
    key = np.array([(seed << 32) + step + 1 & (1 << 64) - 1], np.uint64)
    with np.errstate(over="ignore"):
        key *= np.uint64(splitmix64.GAMMA)
    splitmix64.mix(key)
    return int(key.view(np.int64)[0])
