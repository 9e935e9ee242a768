"""`python3 -m dlrm_v3.generate.from_csv --preset=sampled CSV OUT`: the reference's files as ours.

The files do not say how many items there are nor what a timestamp is, so the settings are given as
to `dlrm_v3.generate`. The true probabilities are not in them either: they are NaN, and there is no
`best.json`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from dlrm_v3.config import StreamConfig
    from dlrm_v3.data.layout import LEAST_RATING, MOST_RATING, StreamMetadata, slots_of
    from dlrm_v3.generate import csv_layout
    from dlrm_v3.generate.process import UserEvents
    from dlrm_v3.generate.run import begin
    from dlrm_v3.generate.settings import add_settings, stream_config
    from dlrm_v3.generate.shards import write_shard
    from dlrm_v3.generate.tastes import taste_table

_FIELDS = ("candidate_items", "candidate_ratings", "history_items", "history_ratings")
"""The fields of a step, in their order."""

_BLOCK_USERS = 64
_SHOWN = 30  # characters of a malformed field


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    interrupted = "interrupted; finished shards are kept, the same command goes on"
    return cli.exit_code(lambda: _run(arguments), interrupted)


def _run(arguments: Sequence[str] | None) -> int:
    parser: argparse.ArgumentParser = cli.Parser(
        prog="python3 -m dlrm_v3.generate.from_csv",
        description="Convert the CSV files of MLPerf's reference into our columns.",
    )
    parser.add_argument("csv", type=Path, help="folder with 0.csv and so on")
    parser.add_argument("output", type=Path, help="folder to write; what is finished in it is kept")
    add_settings(parser)
    flags = vars(parser.parse_args(arguments))
    metadata = StreamMetadata(flags["preset"], stream_config(flags))
    begin(flags["output"], metadata)
    for shard in range(metadata.config.written_shards):
        path = flags["csv"] / csv_layout.users_file(shard)
        write_shard(flags["output"], metadata, shard, _blocks(path, metadata.config))
        print(f"{path}: converted", flush=True)
    return 0


def _blocks(path: Path, config: StreamConfig) -> Iterator[UserEvents]:
    """Reads a file of users, some users at a time.

    Raises:
        OSError: There is no such file.
        ValueError: It has another number of users, or a user is malformed.
    """
    csv.field_size_limit(sys.maxsize)
    users, found, block = config.users // config.shards, 0, []
    with open(path, encoding="ascii", newline="") as file:
        for found, fields in enumerate(csv.reader(file), 1):
            block.append(_User(f"{path}: line {found}", fields, config))
            if len(block) == _BLOCK_USERS:
                yield _events(block, config)
                block = []
    if block:
        yield _events(block, config)
    if found != users:
        raise ValueError(f"{path}: expected {users} lines, one a user, found {found}; see --users")


class _User:
    """The events of one user.

    Attributes:
        columns: Items and ratings, of candidates and of the history; an array for each slot.

    Args:
        place: File and line, for error messages.
        fields: The fields of the line.
        config: The settings.

    Raises:
        ValueError: The fields are not those of a user.
    """

    def __init__(self, place: str, fields: list[str], config: StreamConfig) -> None:
        self._place, self._config = place, config
        slots = slots_of(config)
        if len(fields) != slots * len(_FIELDS):
            self._refuse("fields", f"{slots * len(_FIELDS)} of {slots} steps", len(fields))
        steps = np.argsort(csv_layout.slots_by_field(config)).tolist()  # the step of each slot
        self.columns = {
            name: [self._numbers(name, step, fields[step * len(_FIELDS) + field]) for step in steps]
            for field, name in enumerate(_FIELDS)
        }
        for slot, step in enumerate(steps):
            items, ratings, past_items, past_ratings = (
                len(self.columns[name][slot]) for name in _FIELDS
            )
            if items != ratings or past_items != past_ratings or bool(items) != bool(past_items):
                found = f"{items}, {ratings}, {past_items} and {past_ratings} numbers"
                self._refuse(f"step {step}", "an item for each rating, or four empty fields", found)

    def _numbers(self, name: str, step: int, text: str) -> NDArray[Any]:
        """The numbers of a field: int32 items or float32 ratings."""
        items = name.endswith("items")
        least, most = (0, self._config.items - 1) if items else (LEAST_RATING, MOST_RATING)
        kinds = {int} if items else {int, float}
        try:
            numbers = json.loads(f"[{text}]")
            # float64 holds either exactly.
            values = np.array(numbers if set(map(type, numbers)) <= kinds else [math.nan])
        except ValueError:
            values = np.array([math.nan])
        values = values.astype(np.float64)
        if not items:
            values = values.astype(np.float32)  # as the rating is kept, and labels come from it
        if not ((values >= least) & (values <= most)).all():
            found = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            self._refuse(f"step {step}: {name}", f"numbers from {least} to {most}", repr(found))
        return values.astype(np.int32) if items else values

    def _refuse(self, what: str, expected: str, found: object) -> NoReturn:
        raise ValueError(
            f"{self._place}: {what}: expected {expected}, found {found}; check the file and the "
            "settings that were given"
        )


def _events(block: list[_User], config: StreamConfig) -> UserEvents:
    """Joins the events of users."""
    columns = {
        name: np.concatenate([values for user in block for values in user.columns[name]])
        for name in _FIELDS
    }
    lengths = {
        kind: np.array(
            [[len(values) for values in user.columns[f"{kind}_items"]] for user in block]
        )
        for kind in ("history", "candidate")
    }
    return UserEvents(
        history_lengths=lengths["history"],
        candidate_lengths=lengths["candidate"],
        candidate_probabilities=np.full(len(columns["candidate_items"]), np.nan, np.float32),
        tallies=np.zeros((slots_of(config), *taste_table(0).ratings.shape), np.int64),
        **columns,
    )


if __name__ == "__main__":
    sys.exit(main())
