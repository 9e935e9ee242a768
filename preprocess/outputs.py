"""The files of a result: which columns of a record each one holds, and how the folder is written.

A result is made in `partial/` inside the output folder and moved to its final names when all of it
is on disk. This module must not know about the engines.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dlrm.formats import atomic_files, checksums
from dlrm.formats.bag_files import bag_file_names
from dlrm.formats.bags import BagTable
from dlrm.formats.file_names import (
    CATEGORY,
    CHECKSUMS,
    DENSE,
    LABEL,
    METADATA,
    RECORDS,
    record_file,
)
from dlrm.formats.json_files import json_text
from dlrm.formats.metadata import Metadata
from dlrm.formats.packed_ids import Packing, plan
from preprocess.options import Options
from preprocess.splits import VALIDATION

WORK = "partial"
DICTIONARY = "dictionary"
IDS, OFFSETS, WEIGHTS = "ids", "offsets", "weights"

Save = Callable[[Mapping[str, Any]], None]
"""Saves a state of a run durably, as `Journal.save` does."""


@dataclass(frozen=True)
class OutputFile:
    """One data file of a result.

    Attributes:
        split: The split whose rows it holds.
        name: Its path within the output folder.
        start: The first column of the record that it holds; of a bag, that of its number of ids.
        stop: The column after the last one that it holds.
        packed: Whether its columns are ids to be packed.
        bag: The table with bags whose ids, offsets or weights it holds; None if it holds columns.
        content: "ids", "offsets" or "weights" of a table with bags.
    """

    split: str
    name: str
    start: int
    stop: int
    packed: bool = False
    bag: BagTable | None = None
    content: str = ""


def output_files(options: Options, split: str) -> list[OutputFile]:
    """Returns the data files of a split."""
    if not options.columns:
        return [OutputFile(split, record_file(split), 0, options.width)]
    first_id = 1 + options.num_dense
    first_bag = first_id + options.num_single
    files = [
        OutputFile(split, f"{split}/{LABEL}", 0, 1),
        OutputFile(split, f"{split}/{DENSE}", 1, first_id),
    ]
    if options.num_single:
        name = f"{split}/{CATEGORY}"
        files.append(OutputFile(split, name, first_id, first_bag, options.pack_ids))
    for column, bag in enumerate(options.bags, first_bag):
        files += [
            OutputFile(split, f"{split}/{name}", column, column + 1, bag=bag, content=content)
            for name, content in zip(bag_file_names(bag), (IDS, OFFSETS, WEIGHTS))
        ]
    return files


class Store(Protocol):
    """A folder on some file system; names are paths within the folder."""

    def read(self, name: str) -> str | None:
        """Returns the text of a file, or None if it is absent."""

    def write(self, name: str, text: str) -> None:
        """Writes a text file durably, so that it is complete or as it was before."""

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name exists."""

    def replace(self, old: str, new: str) -> None:
        """Renames a file or folder; whatever has the new name is replaced."""

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content, if it exists."""


class LocalStore:
    """A folder on this machine; see `Store`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> str | None:
        """Returns the text of a file, or None if it is absent."""
        path = self.folder / name
        return path.read_text(encoding="utf-8") if path.exists() else None

    def write(self, name: str, text: str) -> None:
        """Writes a text file durably, so that it is complete or as it was before."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_text(path, text)

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name exists."""
        return (self.folder / name).exists()

    def replace(self, old: str, new: str) -> None:
        """Renames a file or folder; whatever has the new name is replaced."""
        target = self.folder / new
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        atomic_files.rename(self.folder / old, target)

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content, if it exists."""
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Journal:
    """Records what a run has finished, in `partial/state.json`.

    Args:
        store: The output folder.
        name: Its name in error messages.
    """

    _FILE = f"{WORK}/state.json"
    _FORMAT = 2  # of the states that the engines save; 1 was not written down

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._command: dict[str, str] = {}
        self.kept = False
        """Whether a state was found or saved: progress that another run can continue."""

    def begin(self, command: Mapping[str, str], restart: bool) -> dict[str, Any]:
        """Returns the state that an unfinished run of the same command left, or an empty one.

        Args:
            command: Options and inputs, by name.
            restart: Whether to discard an unfinished run.

        Raises:
            ValueError: The unfinished run had another command, whose first difference the message
                names, or another version of the engines.
        """
        self._command = dict(command)
        text = None if restart else self._store.read(self._FILE)
        if text is None:
            self._store.remove(WORK)
            return {}
        content = json.loads(text)
        if content.get("format", 1) != self._FORMAT:
            raise ValueError(
                f"{self._name}: holds an unfinished run of another version of this program;"
                " continue it with that version, or give --restart to discard it"
            )
        before: dict[str, str] = content["command"]
        for name in {**command, **before}:
            if before.get(name) != command.get(name):
                raise ValueError(
                    f"{self._name}: holds an unfinished run with {name}="
                    f"{before.get(name, '(absent)')}, this one has"
                    f" {command.get(name, '(absent)')}; give the same command to continue it,"
                    " or --restart to discard it"
                )
        self.kept = True
        return dict(content["state"])

    def save(self, state: Mapping[str, Any]) -> None:
        """Saves a state durably; the files that it refers to must be on disk already."""
        self.kept = True
        content = {"format": self._FORMAT, "command": self._command, "state": state}
        self._store.write(self._FILE, json.dumps(content))


def publish(
    store: Store,
    options: Options,
    description: Mapping[str, Any],
    sums: Mapping[str, checksums.FileSum],
) -> None:
    """Moves a finished result from `partial/` to its final names; repeatable after a kill.

    Descriptions and checksums are removed first and written last, so that none ever describes the
    data of another run.

    Args:
        store: The output folder.
        options: The options of the run.
        description: The content of `records.json`.
        sums: The checksum of each data file, by its name within the output folder.
    """
    folders = sorted({name.rpartition("/")[0] for name in sums})
    described = (RECORDS, *(_within(f, n) for f in folders for n in (METADATA, CHECKSUMS)))
    for name in described:
        store.remove(name)
    if not options.has_dictionary:
        store.remove(DICTIONARY)
    for name in (*((DICTIONARY,) if options.has_dictionary else ()), *sums):
        if store.exists(f"{WORK}/{name}"):
            store.replace(f"{WORK}/{name}", name)
        assert store.exists(name), name
    if not options.columns and not options.split.validates:
        store.remove(record_file(VALIDATION))
    if options.columns:
        metadata = split_metadata(options, description["vocab_sizes"])
        for folder in folders:
            store.write(_within(folder, METADATA), json_text(metadata.to_json()))
    store.write(RECORDS, json_text(description, indent=2))
    for folder in folders:
        entries = {
            name.rpartition("/")[2]: value
            for name, value in sums.items()
            if name.rpartition("/")[0] == folder
        }
        store.write(_within(folder, CHECKSUMS), json_text(checksums.to_json(entries)))
    store.remove(WORK)


def split_metadata(options: Options, vocab_sizes: list[int]) -> Metadata:
    """Returns the description of a split folder, as split_bin.py writes it."""
    floats = options.schema.columns is not None
    return Metadata(
        vocab_sizes=tuple(vocab_sizes),
        label_raw_type="int32",
        dense_raw_type="float32" if floats else "int32",
        category_raw_type="int32",
        dense_log=not floats,
        num_dense=options.num_dense,
        dense_log_offset=options.rules.dense_log_offset,
        packed_ids=packing(options, vocab_sizes),
        bags=options.bags,
    )


def packing(options: Options, vocab_sizes: list[int]) -> Packing | None:
    """Returns how the ids of tables without bags are packed; None if they are not."""
    single = vocab_sizes[: options.num_single]
    return plan(single) if options.pack_ids and single else None


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
