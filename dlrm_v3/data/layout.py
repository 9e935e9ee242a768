"""How the streaming data lies in files: names, types and order, for who writes and who reads them.

    OUT/metadata.json               format, preset and the settings of the stream
    OUT/best.json                   the figures that no model can beat, by timestamp
    OUT/shards/00000/shard.json     counts and checksums of the shard
    OUT/shards/00000/*.bin          its columns

A shard holds consecutive users. A user's events lie in slots: slot 0 is the base history, slot
t + 1 the step of timestamp t, and the last slot the evaluation's step, which is no part of any
history. So the history of a request at timestamp t is one slice: slots 0 to t. This module must not
know how events come about, nor what is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlrm.formats.json_files import read_json_object, sum_of_json, write_json_object
from dlrm_v3.config import StreamConfig

FORMAT = 1
METADATA, BEST, SHARDS, SHARD = "metadata.json", "best.json", "shards", "shard.json"
LEAST_RATING, MOST_RATING = 1, 5
REMEDY = "write the folder with python3 -m dlrm_v3.generate"

COLUMNS: Mapping[str, np.dtype[Any]] = {
    # Slot s of the u-th user of a shard has the events [offsets[i], offsets[i + 1]) where
    # i = u * slots + s.
    "history_offsets": np.dtype("<i8"),
    "history_items": np.dtype("<i4"),
    "history_ratings": np.dtype("<f4"),
    "candidate_offsets": np.dtype("<i8"),
    "candidate_items": np.dtype("<i4"),
    "candidate_ratings": np.dtype("<f4"),
    "candidate_probabilities": np.dtype("<f4"),  # that the label is 1; NaN where unknown
    # The users that are active at timestamp t are [offsets[t], offsets[t + 1]), by rising id.
    "request_offsets": np.dtype("<i8"),
    "request_users": np.dtype("<i4"),
}


def file_name(column: str) -> str:
    """The name of a column's file in the folder of its shard."""
    return f"{column}.bin"


def shard_folder(folder: Path, shard: int) -> Path:
    """The folder of a shard."""
    return folder / SHARDS / f"{shard:05d}"


def slots_of(config: StreamConfig) -> int:
    """Number of slots of a user: the base, the timestamps, the evaluation."""
    return config.timestamps + 2


def eval_slot(config: StreamConfig) -> int:
    """The slot of the evaluation's step, the last one."""
    return config.timestamps + 1


class StreamMetadata(NamedTuple):
    """The content of `metadata.json`.

    Attributes:
        preset: Name of the preset from which the settings come.
        config: The settings.
    """

    preset: str
    config: StreamConfig

    @property
    def digest(self) -> str:
        """A short text that differs for other settings."""
        return sum_of_json(asdict(self.config))


def write_metadata(folder: Path, metadata: StreamMetadata) -> None:
    """Writes `metadata.json`."""
    content = {
        "format": FORMAT,
        "preset": metadata.preset,
        "settings": asdict(metadata.config),
    }
    write_json_object(folder / METADATA, content, indent=2)


def read_metadata(folder: Path) -> StreamMetadata:
    """Reads `metadata.json`.

    Raises:
        OSError: There is none.
        ValueError: It is malformed, or a setting is out of its range.
    """
    path = folder / METADATA
    content = read_json_object(path, REMEDY)
    if content.get("format") != FORMAT:
        found = content.get("format")
        raise ValueError(f"{path}: format: expected {FORMAT}, found {found!r}; {REMEDY}")
    preset, settings = content.get("preset"), content.get("settings")
    names = {setting.name for setting in fields(StreamConfig)}
    if not isinstance(preset, str) or not isinstance(settings, dict) or settings.keys() != names:
        raise ValueError(
            f"{path}: expected a preset's name and settings {', '.join(sorted(names))}, found "
            f"{preset!r} and {settings!r}; {REMEDY}"
        )
    for name, value in settings.items():
        kinds = (int, float) if name == "user_share" else (int,)
        if type(value) not in kinds:
            raise ValueError(f"{path}: {name}: expected a number, found {value!r}; {REMEDY}")
    try:
        return StreamMetadata(preset, StreamConfig(**settings))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {REMEDY}") from None
