"""Shards on disk: written block by block, complete or absent, in any order and by any process.

A shard is written in a folder of its writer's own, which gets its name when it is complete. This
module must not know how events are drawn.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files
from dlrm.formats.checksums import RunningSum, write_checksums
from dlrm.formats.folder_lock import lock_folder
from dlrm.formats.json_files import write_json_object
from dlrm_v3.data.layout import (
    COLUMNS,
    SHARD,
    SHARDS,
    StreamMetadata,
    file_name,
    shard_folder,
    slots_of,
)
from dlrm_v3.data.shard import BROKEN, read_description
from dlrm_v3.generate.best import label_counts
from dlrm_v3.generate.process import EventProcess, UserEvents
from dlrm_v3.generate.tastes import ITEM_RATINGS, QUARTERS

BLOCK_USERS = 512
"""Users that are drawn together; it bounds the memory and is part of what decides the bytes."""


def remove_unfinished(folder: Path) -> None:
    """Removes what runs that were killed have left of shards."""
    for left in (folder / SHARDS).glob(f"*{atomic_files.TEMPORARY_SUFFIX}"):
        with contextlib.suppress(ValueError, FileNotFoundError):  # locked: another run writes it
            os.close(lock_folder(left))
            shutil.rmtree(left)


def generate_shard(folder: Path, metadata: StreamMetadata, shard: int) -> None:
    """Draws the events of a shard and writes it, unless it is there; as `write_shard`."""
    config = metadata.config
    users = config.users // config.shards
    process = EventProcess(config)
    blocks = (
        process.block(shard * users + start, min(BLOCK_USERS, users - start))
        for start in range(0, users, BLOCK_USERS)
    )
    write_shard(folder, metadata, shard, blocks)


def write_shard(
    folder: Path, metadata: StreamMetadata, shard: int, blocks: Iterable[UserEvents]
) -> None:
    """Writes a shard, unless it is there.

    If two processes write the same shard, which costs time alone, the first one's is kept: both
    have the same bytes.

    Args:
        folder: The folder of the data.
        metadata: What the data is.
        shard: The number of the shard.
        blocks: The events of its users, some users at a time.
    """
    final = shard_folder(folder, shard)
    if final.exists():
        return
    pending = final.with_name(f"{final.name}.{os.getpid()}{atomic_files.TEMPORARY_SUFFIX}")
    lock = lock_folder(pending)
    try:
        _write_columns(pending, metadata, shard, blocks)
        atomic_files.sync_directory(pending)
        try:
            atomic_files.rename(pending, final)
        except OSError:
            if not final.exists():
                raise
    finally:
        shutil.rmtree(pending, ignore_errors=True)
        os.close(lock)


def shard_label_counts(folder: Path, metadata: StreamMetadata, shard: int) -> NDArray[np.int64]:
    """Reads the `label_counts` of a shard that is complete.

    Raises:
        OSError: Its description is missing.
        ValueError: Its description is malformed.
    """
    found = read_description(folder, metadata, shard)["label_counts"]
    try:
        counts = np.array(found, np.int64)
    except (TypeError, ValueError):
        counts = np.empty(0, np.int64)
    expected = (slots_of(metadata.config), QUARTERS, len(ITEM_RATINGS), 2)
    if counts.shape != expected:
        raise ValueError(
            f"{shard_folder(folder, shard) / SHARD}: label_counts: expected numbers of shape "
            f"{expected}, found {counts.shape}; {BROKEN}"
        )
    return counts


def _write_columns(
    folder: Path, metadata: StreamMetadata, shard: int, blocks: Iterable[UserEvents]
) -> None:
    """Writes the columns of a shard and its description."""
    config = metadata.config
    users = config.users // config.shards
    first_user = shard * users
    with contextlib.ExitStack() as stack:
        columns = {
            name: stack.enter_context(contextlib.closing(_ColumnWriter(folder, name)))
            for name in COLUMNS
        }
        ends = {"history": 0, "candidate": 0}
        for kind in ends:
            columns[f"{kind}_offsets"].write(np.zeros(1))
        active: list[NDArray[np.bool_]] = []
        tallies: NDArray[np.int64] | int = 0
        for events in blocks:
            for kind in ends:
                lengths = getattr(events, f"{kind}_lengths")
                offsets = ends[kind] + np.cumsum(lengths.ravel())
                ends[kind] = int(offsets[-1])
                columns[f"{kind}_offsets"].write(offsets)
            for name in UserEvents._fields:
                if name in columns:
                    columns[name].write(getattr(events, name))
            active.append(events.candidate_lengths[:, 1:-1] > 0)
            tallies += events.tallies
        timestamps, places = np.nonzero(np.concatenate(active).T)
        columns["request_users"].write(first_user + places)
        columns["request_offsets"].write(
            np.searchsorted(timestamps, np.arange(config.timestamps + 1))
        )
    write_checksums(folder, {file_name(name): columns[name].sum.value for name in COLUMNS})
    write_json_object(
        folder / SHARD,
        {
            "settings": metadata.digest,
            "first_user": first_user,
            "users": users,
            "events": ends["history"],
            "candidates": ends["candidate"],
            "requests": len(places),
            "bytes": sum(column.sum.value.bytes for column in columns.values()),
            "label_counts": label_counts(np.asarray(tallies), config).tolist(),
        },
    )


class _ColumnWriter:
    """One column file that grows, with its checksum."""

    def __init__(self, folder: Path, column: str) -> None:
        self._path = folder / file_name(column)
        self._dtype = COLUMNS[column]
        self._file: BinaryIO = open(self._path, "wb", buffering=0)  # noqa: SIM115
        self.sum = RunningSum()

    def write(self, values: NDArray[Any]) -> None:
        """Appends values, converted to the type of the column."""
        view = np.ascontiguousarray(values, self._dtype).data.cast("B")
        self.sum.update(view)
        done = 0
        with atomic_files.naming(self._path):
            while done < len(view):
                done += self._file.write(view[done:])

    def close(self) -> None:
        """Brings the file to the disk."""
        with self._file as file:
            atomic_files.sync(file.fileno(), self._path)
