"""`python3 -m dlrm_v3.generate.to_csv DATA CSV`: writes streaming data in the reference's files.

Its own reader reads them. Ratings are written so that they are read back as the same float32.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from dlrm.formats import atomic_files
    from dlrm_v3.config import StreamConfig
    from dlrm_v3.data.layout import slots_of
    from dlrm_v3.data.shard import StreamShard
    from dlrm_v3.data.stream import open_shards
    from dlrm_v3.generate import csv_layout


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return cli.exit_code(lambda: _run(arguments), "interrupted; remove the CSV folder")


def _run(arguments: Sequence[str] | None) -> int:
    parser: argparse.ArgumentParser = cli.Parser(
        prog="python3 -m dlrm_v3.generate.to_csv",
        description="Write streaming data as the CSV files of MLPerf's reference.",
    )
    parser.add_argument("data", type=Path, help="folder that dlrm_v3.generate wrote")
    parser.add_argument("csv", type=Path, help="folder to write, new or empty")
    flags = parser.parse_args(arguments)
    cli.allow_many_files()
    write_csv(flags.data, flags.csv)
    print(f"{flags.csv}: written")
    return 0


def write_csv(data: Path, folder: Path) -> None:
    """Writes all files of the reference.

    Args:
        data: The folder of our data.
        folder: The folder to write.

    Raises:
        OSError: A file is missing or cannot be written.
        ValueError: The data is broken, or the folder is not empty.
    """
    metadata, shards = open_shards(data)
    config = metadata.config
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder}: expected an empty folder, found files; use another folder")
    folder.mkdir(parents=True, exist_ok=True)
    active = [
        [shard.active_users(timestamp).tolist() for shard in shards]
        for timestamp in range(config.timestamps)
    ]
    for timestamp, parts in enumerate(active):
        for number, users in enumerate(parts):
            path = folder / csv_layout.active_file(number, timestamp)
            _write_rows(path, ([str(user)] for user in users))
    offsets = [
        _write_users(folder / csv_layout.users_file(number), shard, config)
        for number, shard in enumerate(shards)
    ]
    _write_rows(folder / csv_layout.OFFSETS, [[_joined(row)] for row in offsets])
    requests = [[_joined(sum(users, []))] for users in active]
    starts = _write_rows(folder / csv_layout.REQUESTS, requests)
    _write_rows(folder / csv_layout.REQUESTS_OFFSETS, [[_joined(starts)]])
    counts = np.cumsum([[len(part) for part in users] for users in active], axis=1)
    _write_rows(folder / csv_layout.USERS_SO_FAR, [[_joined(row)] for row in counts.tolist()])


def _write_users(path: Path, shard: StreamShard, config: StreamConfig) -> list[int]:
    """Writes the users of a shard and returns where their lines begin."""
    slots, texts = slots_of(config), _Texts()

    def fields(user: int) -> Iterable[str]:
        first = user * slots
        for slot in csv_layout.slots_by_field(config):
            for kind in ("candidate", "history"):
                start, end = shard[f"{kind}_offsets"][first + slot : first + slot + 2]
                yield _joined(shard[f"{kind}_items"][start:end].tolist())
                yield texts.of(shard[f"{kind}_ratings"][start:end])

    users = (len(shard["history_offsets"]) - 1) // slots
    return _write_rows(path, (list(fields(user)) for user in range(users)))


def _write_rows(path: Path, rows: Iterable[list[str]]) -> list[int]:
    """Writes a CSV file and returns where its rows begin, in bytes."""
    starts, end = [], 0
    with atomic_files.whole_file(path) as temporary, open(temporary, "wb") as file:
        for row in rows:
            line = io.StringIO()
            csv.writer(line).writerow(row)
            starts.append(end)
            end += file.write(line.getvalue().encode())
    return starts


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


class _Texts:
    """The shortest text of each rating that is read back as the same float32, made once."""

    def __init__(self) -> None:
        self._texts: dict[float, str] = {}

    def of(self, ratings: NDArray[np.float32]) -> str:
        """The ratings, joined by commas."""
        values = ratings.tolist()
        for value in set(values) - self._texts.keys():
            self._texts[value] = str(np.float32(value))
        return ",".join([self._texts[value] for value in values])


if __name__ == "__main__":
    sys.exit(main())
