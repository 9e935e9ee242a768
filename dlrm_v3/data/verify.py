"""`python3 -m dlrm_v3.data.verify DATA`: is streaming data what was written, and can it be so?

Reading a batch checks what the batch needs; this reads everything: the checksums of all files, the
order of all places, all items and ratings, and that the requests are those that have candidates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    import numpy as np

    from dlrm.formats.checksums import sum_of
    from dlrm.formats.quantities import size_text
    from dlrm_v3.config import StreamConfig
    from dlrm_v3.data.layout import COLUMNS, file_name, slots_of
    from dlrm_v3.data.shard import BROKEN, StreamShard
    from dlrm_v3.data.stream import open_shards

_PIECE_EVENTS = 1 << 22  # checked at a time, which bounds the memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return cli.exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser: argparse.ArgumentParser = cli.Parser(
        prog="python3 -m dlrm_v3.data.verify",
        description="Read all of a folder of streaming data and report the first fault.",
    )
    parser.add_argument("data", type=Path, help="folder that dlrm_v3.generate wrote")
    folder = parser.parse_args(arguments).data
    cli.allow_many_files()
    metadata, shards = open_shards(folder)
    for shard in shards:
        verify_shard(shard, metadata.config)
    size = sum(entry.bytes for shard in shards for entry in shard.sums.values())
    print(f"{folder}: {len(shards)} of {metadata.config.shards} shards, {size_text(size)}: good")
    return 0


def verify_shard(shard: StreamShard, config: StreamConfig) -> None:
    """Reads all of a shard.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file has changed since it was written, or its content cannot be.
    """
    for column in COLUMNS:
        expected, found = shard.sums[file_name(column)], sum_of(shard.path(column))
        if found != expected:
            raise ValueError(
                f"{shard.path(column)}: expected CRC-32 {expected.crc32}, as it was written, found "
                f"{found.crc32}; {BROKEN}"
            )
    users = shard.first_user + np.arange(config.users // config.shards, dtype=np.int32)
    for kind in ("history", "candidate"):
        shard.places(kind, users, 0, slots_of(config))
        end = len(shard[f"{kind}_items"])
        for start in range(0, end, _PIECE_EVENTS):
            shard.check_events(kind, start, min(start + _PIECE_EVENTS, end))
    for timestamp in range(config.timestamps):
        places = shard.places("candidate", users, timestamp + 1, 1)
        expected_users = users[places[:, 1] > places[:, 0]]
        found_users = shard.active_users(timestamp)
        if not np.array_equal(found_users, expected_users):
            raise ValueError(
                f"{shard.path('request_users')}: timestamp {timestamp}: expected the "
                f"{len(expected_users)} users with candidates, found {len(found_users)} users, not "
                f"the same; {BROKEN}"
            )


if __name__ == "__main__":
    sys.exit(main())
