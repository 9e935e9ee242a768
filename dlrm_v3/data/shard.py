"""One shard of streaming data: its description, its columns as mapped memory, and its checks.

This module must not know batches or other shards.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.checksums import FileSum, read_checksums
from dlrm.formats.file_names import CHECKSUMS
from dlrm.formats.json_files import read_json_object
from dlrm_v3.data.layout import (
    COLUMNS,
    LEAST_RATING,
    MOST_RATING,
    REMEDY,
    SHARD,
    StreamMetadata,
    file_name,
    shard_folder,
    slots_of,
)

_DESCRIPTION = ("first_user", "users", "events", "candidates", "requests", "bytes", "label_counts")
BROKEN = "remove the folder of this shard and write it again with python3 -m dlrm_v3.generate"


def read_description(folder: Path, metadata: StreamMetadata, shard: int) -> dict[str, Any]:
    """Reads the description of a shard.

    Args:
        folder: The folder of the data.
        metadata: What the data is.
        shard: The number of the shard.

    Raises:
        OSError: There is none.
        ValueError: It is malformed or belongs to other settings.
    """
    path = shard_folder(folder, shard) / SHARD
    content = read_json_object(path, REMEDY)
    if content.get("settings") != metadata.digest:
        raise ValueError(
            f"{path}: settings: expected {metadata.digest}, those of metadata.json, found "
            f"{content.get('settings')!r}; {BROKEN}"
        )
    missing = [key for key in _DESCRIPTION if key not in content]
    if missing:
        raise ValueError(
            f"{path}: expected {', '.join(_DESCRIPTION)}, {missing[0]} is missing; {BROKEN}"
        )
    return content


class StreamShard:
    """The columns of a shard, by name as in `COLUMNS`.

    Attributes:
        first_user: The id of its first user.
        sums: The size and checksum of each file, as they were when it was written.

    Args:
        folder: The folder of the data.
        metadata: What the data is.
        shard: The number of the shard.

    Raises:
        OSError: A file is missing.
        ValueError: A file has another size than it was written with.
    """

    def __init__(self, folder: Path, metadata: StreamMetadata, shard: int) -> None:
        read_description(folder, metadata, shard)
        config = metadata.config
        self._folder = shard_folder(folder, shard)
        self._slots = slots_of(config)
        self._users = config.users // config.shards
        self.first_user = shard * self._users
        self._config = config
        self.sums = _read_sums(self._folder)
        self._columns = {name: _map_column(self._folder, name, self.sums) for name in COLUMNS}
        rows = {
            "history_offsets": self._users * self._slots + 1,
            "candidate_offsets": self._users * self._slots + 1,
            "request_offsets": config.timestamps + 1,
        }
        for name, count in rows.items():
            if len(self[name]) != count:
                raise ValueError(
                    f"{self.path(name)}: expected {count} values, found {len(self[name])}; {BROKEN}"
                )

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self._columns[column]

    def path(self, column: str) -> Path:
        """The file of a column."""
        return self._folder / file_name(column)

    def active_users(self, timestamp: int) -> NDArray[np.int32]:
        """The users with a request at a timestamp, int32 [requests], ids in ascending order.

        Raises:
            ValueError: The file is broken.
        """
        start, stop = (int(place) for place in self["request_offsets"][timestamp : timestamp + 2])
        column = self["request_users"]
        if not 0 <= start <= stop <= len(column):
            raise ValueError(
                f"{self.path('request_offsets')}: timestamp {timestamp}: expected places in order "
                f"and up to {len(column)}, found {start} and {stop}; {BROKEN}"
            )
        users = np.array(column[start:stop], np.int32)
        bad = (users < self.first_user) | (users >= self.first_user + self._users)
        bad[1:] |= users[1:] <= users[:-1]
        if bad.any():
            place = int(bad.argmax())
            raise ValueError(
                f"{self.path('request_users')}: place {start + place} (timestamp {timestamp}): "
                f"expected ascending ids from {self.first_user} to "
                f"{self.first_user + self._users - 1}, found {users[place]}; {BROKEN}"
            )
        return users

    def places(
        self, kind: str, users: NDArray[np.int32], first: int, slots: int
    ) -> NDArray[np.int64]:
        """Finds where the events of users begin and end.

        Args:
            kind: "history" or "candidate".
            users: int32 [n], ids of users of this shard.
            first: The first slot.
            slots: Number of slots from there.

        Returns:
            int64 [n, slots + 1], where each slot begins, and the end of the last.

        Raises:
            ValueError: The places are out of order.
        """
        name = f"{kind}_offsets"
        rows = (users.astype(np.int64) - self.first_user) * self._slots + first
        places = self[name][rows[:, None] + np.arange(slots + 1)]
        end = len(self[f"{kind}_items"])
        bad = (places < 0) | (places > end)
        bad[:, 1:] |= places[:, 1:] < places[:, :-1]
        if bad.any():
            row, column = (int(place) for place in np.argwhere(bad)[0])
            raise ValueError(
                f"{self.path(name)}: place {rows[row] + column} (user {users[row]}): expected an "
                f"offset from {max(int(places[row, column - 1]), 0) if column else 0} to {end}, "
                f"found {places[row, column]}: events out of order; {BROKEN}"
            )
        return places

    def check_events(self, kind: str, start: int, end: int) -> None:
        """Raises `ValueError` with the place of the first of these events that cannot exist."""
        items, ratings = self[f"{kind}_items"][start:end], self[f"{kind}_ratings"][start:end]
        for name, values, least, most in (
            ("items", items, 0, self._config.items - 1),
            ("ratings", ratings, LEAST_RATING, MOST_RATING),
        ):
            bad = ~((values >= least) & (values <= most))  # NaN is neither
            if bad.any():
                place = int(bad.argmax())
                raise ValueError(
                    f"{self.path(f'{kind}_{name}')}: place {start + place}: expected {name} from "
                    f"{least} to {most}, found {values[place]}; {BROKEN}"
                )


def _read_sums(folder: Path) -> dict[str, FileSum]:
    """Reads the sizes and checksums of a shard's files."""
    sums = read_checksums(folder)
    if sums is None or sums.keys() != {file_name(column) for column in COLUMNS}:
        raise ValueError(
            f"{folder / CHECKSUMS}: expected the sums of {len(COLUMNS)} files, found "
            f"{'no file' if sums is None else sorted(sums)}; {BROKEN}"
        )
    return sums


def _map_column(folder: Path, column: str, sums: Mapping[str, FileSum]) -> NDArray[Any]:
    """Maps the file of a column."""
    path = folder / file_name(column)
    dtype, expected = COLUMNS[column], sums[path.name].bytes
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; {BROKEN}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size != expected or size % dtype.itemsize:
            raise ValueError(
                f"{path}: expected {expected} bytes, as it was written, found {size}; {BROKEN}"
            )
        if not size:  # which cannot be mapped
            return np.empty(0, dtype)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)
