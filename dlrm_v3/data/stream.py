"""Reads streaming data: the requests of a timestamp, and batches of them as slices of mapped files.

Only what a batch needs is read and checked: the places of the events of its users, ids and ratings.
This module must not know models or ranks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.json_files import sum_of_json
from dlrm.formats.zip_strict import zip_strict
from dlrm_v3.config import ACTION_WEIGHTS, StreamConfig
from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.data.layout import (
    LEAST_RATING,
    MOST_RATING,
    REMEDY,
    StreamMetadata,
    eval_slot,
    read_metadata,
    shard_folder,
)
from dlrm_v3.data.shard import StreamShard

_ACTIONS = np.array(ACTION_WEIGHTS, np.int32)


def open_shards(folder: Path) -> tuple[StreamMetadata, list[StreamShard]]:
    """Opens the shards of a folder of streaming data, the first users' first.

    Raises:
        OSError: A file is missing.
        ValueError: The folder is not complete, or a file has another size than was written.
    """
    metadata = read_metadata(folder)
    count = metadata.config.written_shards
    missing = [shard for shard in range(count) if not shard_folder(folder, shard).is_dir()]
    if missing:
        raise ValueError(
            f"{shard_folder(folder, missing[0])}: expected {count} shards, found {len(missing)} "
            f"missing, this one first; {REMEDY}, which keeps the others"
        )
    return metadata, [StreamShard(folder, metadata, shard) for shard in range(count)]


def open_stream(folder: Path) -> RequestStream:
    """Opens a folder of streaming data; raises what `open_shards` does."""
    return RequestStream(*open_shards(folder))


class RequestStream:
    """All requests of a folder of streaming data; several threads may read at once.

    Attributes:
        config: The settings.
        preset: Name of the preset from which the settings come.
        fingerprint: A short text by which different data is recognised.

    Args:
        metadata: What the data is.
        shards: The shards, the first users' first.
    """

    def __init__(self, metadata: StreamMetadata, shards: list[StreamShard]) -> None:
        self.config: StreamConfig = metadata.config
        self.preset = metadata.preset
        sums = {str(number): shard.sums for number, shard in enumerate(shards)}
        self.fingerprint = sum_of_json({"settings": metadata.digest, "shards": sums})
        self._shards = shards
        self._users_per_shard = self.config.users // self.config.shards

    def users(self, timestamp: int, part: str) -> NDArray[np.int32]:
        """The users with a request.

        Args:
            timestamp: The timestamp; that of the evaluation is `config.train_timestamps`.
            part: "train", "eval" or "inference".

        Returns:
            int32 [requests], ids in ascending order.

        Raises:
            ValueError: The part has no such timestamp, or a file is broken.
        """
        self._check_part(timestamp, part)
        if part == "eval":
            return np.arange(len(self._shards) * self._users_per_shard, dtype=np.int32)
        return np.concatenate([shard.active_users(timestamp) for shard in self._shards])

    def batch(
        self,
        users: NDArray[np.int32],
        timestamp: int,
        part: str,
        max_history: int,
        max_candidates: int | None = None,
    ) -> RequestBatch:
        """Reads requests of one timestamp, each with what its user did before.

        Args:
            users: int32 [B], ids in any order.
            timestamp: As in `users`.
            part: As in `users`.
            max_history: Most events of a history; the latest are kept.
            max_candidates: Most candidates of a request; the first are kept. None for all.

        Raises:
            ValueError: A user has no request then, or a file is broken.
        """
        self._check_part(timestamp, part)
        users = np.asarray(users, np.int32)
        shards = self._shards_of(users)
        bounds, candidates = self._places(users, shards, timestamp, part)
        latest = np.maximum(bounds, (bounds[:, -1] - max_history)[:, None])
        if max_candidates is not None:
            np.minimum(candidates[:, 1], candidates[:, 0] + max_candidates, out=candidates[:, 1])
        targets = candidates[:, 1] - candidates[:, 0]
        # One row a request: the events of each slot of its history, then its candidates.
        lengths = np.concatenate([np.diff(latest, axis=1), targets[:, None]], axis=1)
        times = np.arange(timestamp + 2, dtype=np.int64) * self.config.step_seconds
        offsets = np.zeros(len(users) + 1, np.int32)
        np.cumsum(lengths.sum(axis=1), out=offsets[1:])
        pieces = zip_strict(shards.tolist(), latest[:, [0, -1]].tolist(), candidates.tolist())
        items, ratings, probabilities = self._copy(list(pieces))
        actions = _ACTIONS[np.clip(ratings.astype(np.int32), 1, len(_ACTIONS)) - 1]
        is_candidate = np.zeros(len(items), bool)
        is_candidate[_tails(offsets[1:], targets)] = True
        actions[is_candidate] = 0
        return RequestBatch(
            users=users,
            items=items,
            actions=actions,
            times=np.repeat(np.tile(times, len(users)), lengths.ravel()),
            offsets=offsets,
            targets=targets.astype(np.int32),
            ratings=ratings[is_candidate],
            probabilities=probabilities,
        )

    def _check_part(self, timestamp: int, part: str) -> None:
        """Raises `ValueError` unless the part has this timestamp."""
        train, end = self.config.train_timestamps, self.config.timestamps
        ranges = {
            "train": range(train),
            "eval": range(train, train + 1),
            "inference": range(train, end),
        }
        if part not in ranges:
            raise ValueError(f"part: expected {', '.join(ranges)}, found {part!r}")
        if timestamp not in ranges[part]:
            first, last = ranges[part][0], ranges[part][-1]
            raise ValueError(
                f"timestamp: expected one of {part}, {first} to {last}, found {timestamp}"
            )

    def _shards_of(self, users: NDArray[np.int32]) -> NDArray[np.int32]:
        """The number of each user's shard."""
        end = len(self._shards) * self._users_per_shard
        bad = (users < 0) | (users >= end)
        if bad.any():
            raise ValueError(
                f"user: expected an id from 0 to {end - 1}, found {users[bad.argmax()]}"
            )
        return users // self._users_per_shard

    def _places(
        self, users: NDArray[np.int32], shards: NDArray[np.int32], timestamp: int, part: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Finds the events of requests in their shards.

        Returns:
            The bounds of the slots of the history, int64 [B, timestamp + 2], and those of the
            candidates, int64 [B, 2].

        Raises:
            ValueError: A request has no candidates, or places are out of order.
        """
        slot = eval_slot(self.config) if part == "eval" else timestamp + 1
        bounds = np.empty((len(users), timestamp + 2), np.int64)
        candidates = np.empty((len(users), 2), np.int64)
        for number in np.unique(shards):
            mask, shard = shards == number, self._shards[number]
            bounds[mask] = shard.places("history", users[mask], 0, timestamp + 1)
            candidates[mask] = shard.places("candidate", users[mask], slot, 1)
        empty = candidates[:, 0] == candidates[:, 1]
        if empty.any():
            request = int(empty.argmax())
            path = self._shards[shards[request]].path("candidate_offsets")
            raise ValueError(
                f"{path}: user {users[request]}, timestamp {timestamp}: expected candidates, "
                "found none; read the requests of the users that are active at this timestamp"
            )
        return bounds, candidates

    def _copy(
        self, pieces: list[tuple[int, list[int], list[int]]]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """Copies the events of requests.

        Args:
            pieces: For each request the number of its shard, start and end of its history, and
                start and end of its candidates.

        Returns:
            Items and ratings, [n] each, and the candidates' probabilities, [C].
        """
        lengths = [[h[1] - h[0], c[1] - c[0]] for _, h, c in pieces]
        tokens, count = sum(map(sum, lengths)), sum(length[1] for length in lengths)
        items, ratings = np.empty(tokens, np.int32), np.empty(tokens, np.float32)
        probabilities = np.empty(count, np.float32)
        # A copy for each request and column: of memory that lies together, whatever its length.
        token = candidate = 0
        for number, history, candidates in pieces:
            shard = self._shards[number]
            for kind, (start, end) in (("history", history), ("candidate", candidates)):
                place = slice(token, token + end - start)
                items[place] = shard[f"{kind}_items"][start:end]
                ratings[place] = shard[f"{kind}_ratings"][start:end]
                token = place.stop
            start, end = candidates
            probabilities[candidate : candidate + end - start] = shard["candidate_probabilities"][
                start:end
            ]
            candidate += end - start
        if self._unreal(items, ratings):
            for number, history, candidates in pieces:
                self._shards[number].check_events("history", *history)
                self._shards[number].check_events("candidate", *candidates)
        return items, ratings, probabilities

    def _unreal(self, items: NDArray[np.int32], ratings: NDArray[np.float32]) -> bool:
        """Says whether an item or rating cannot exist."""
        if not len(items):
            return False
        least, most = ratings.min(), ratings.max()  # NaN if one is
        known = items.min() >= 0 and items.max() < self.config.items
        return not (known and least >= LEAST_RATING and most <= MOST_RATING)


def _tails(ends: NDArray[np.int32], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The last `lengths[b]` numbers before `ends[b]`, for all b in turn."""
    firsts = ends - np.cumsum(lengths)
    return np.repeat(firsts, lengths) + np.arange(int(lengths.sum()))
