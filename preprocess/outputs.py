"""The files of a result: which columns of a record each one holds, and the folder as it becomes.

A result is made in `partial/` inside the output folder and renamed into place when all of it is
on disk. It knows nothing of engines.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dlrm.formats import checksums, metadata
from dlrm.formats.packed_ids import plan
from preprocess.options import Options

WORK = "partial"
DICTIONARY = "dictionary"
RECORDS = "records.json"


@dataclass(frozen=True)
class OutputFile:
    """One data file.

    Attributes:
        split: whose rows it holds.
        name: path within the output folder.
        start: first column of the record in it.
        stop: the column after the last.
        packed: the columns are ids to be packed.
    """

    split: str
    name: str
    start: int
    stop: int
    packed: bool = False


def output_files(options: Options, split: str) -> list[OutputFile]:
    """The data files of a split."""
    if not options.columns:
        return [OutputFile(split, f"{split}_data.bin", 0, options.width)]
    first_id = 1 + options.num_dense
    return [
        OutputFile(split, f"{split}/label.bin", 0, 1),
        OutputFile(split, f"{split}/dense.bin", 1, first_id),
        OutputFile(split, f"{split}/category.bin", first_id, options.width, options.pack_ids),
    ]


class Store(Protocol):
    """A folder; names are paths within it."""

    def read(self, name: str) -> str | None:
        """Text of a file, None if absent."""

    def write(self, name: str, text: str) -> None:
        """Writes a file that is durable and whole, or as it was before."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""

    def replace(self, old: str, new: str) -> None:
        """Renames a file or folder over what has the new name."""

    def remove(self, name: str) -> None:
        """Removes a file or folder with all it holds, if there."""


class LocalStore:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> str | None:
        """Text of a file, None if absent."""
        path = self.folder / name
        return path.read_text() if path.exists() else None

    def write(self, name: str, text: str) -> None:
        """Writes a file that is durable and whole, or as it was before."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        metadata.sync_folder(path.parent)

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return (self.folder / name).exists()

    def replace(self, old: str, new: str) -> None:
        """Renames a file or folder over what has the new name."""
        target = self.folder / new
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(self.folder / old, target)
        metadata.sync_folder(target.parent)

    def remove(self, name: str) -> None:
        """Removes a file or folder with all it holds, if there."""
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Journal:
    """What a run has finished, kept in `partial/state.json`.

    Args:
        store: the output folder.
        place: its name, for messages.
    """

    _NAME = f"{WORK}/state.json"

    def __init__(self, store: Store, place: str) -> None:
        self._store = store
        self._place = place
        self._command: dict[str, str] = {}
        self.kept = False
        """Whether anything was found or made durable."""

    def begin(self, command: Mapping[str, str], restart: bool) -> dict[str, Any]:
        """The state that an unfinished run of the same command left, or an empty one.

        Args:
            command: options and inputs by name.
            restart: forget an unfinished run.

        Raises:
            ValueError: if the unfinished run had another command; names the first difference.
        """
        self._command = dict(command)
        text = None if restart else self._store.read(self._NAME)
        if text is None:
            self._store.remove(WORK)
            return {}
        content = json.loads(text)
        before: dict[str, str] = content["command"]
        for name in {**command, **before}:
            if before.get(name) != command.get(name):
                raise ValueError(
                    f"{self._place}: holds an unfinished run with {name}="
                    f"{before.get(name, '(absent)')}, this one has"
                    f" {command.get(name, '(absent)')}; give the same command to continue it,"
                    " or --restart to begin anew"
                )
        self.kept = True
        return dict(content["state"])

    def save(self, state: Mapping[str, Any]) -> None:
        """Makes a state durable; what it speaks of must be so already."""
        self.kept = True
        self._store.write(self._NAME, json.dumps({"command": self._command, "state": state}))


def lock(folder: Path) -> int:
    """Holds a folder for this process until it ends or the descriptor returned is closed.

    Raises:
        ValueError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"{folder}: expected no other run to write here, found one; wait for it"
        ) from None
    return descriptor


def publish(
    store: Store,
    options: Options,
    description: Mapping[str, Any],
    sums: Mapping[str, checksums.FileSum],
) -> None:
    """Moves a finished result from `partial/` to its place; may be repeated after a kill.

    Descriptions and checksums go first and come back last, so that none ever stands beside the
    data of another run.

    Args:
        store: the output folder.
        options: what was asked for.
        description: content of `records.json`.
        sums: checksum of each data file, by name.
    """
    folders = sorted({name.rpartition("/")[0] for name in sums})
    described = (RECORDS, *(_within(f, n) for f in folders for n in _DESCRIPTIONS))
    for name in described:
        store.remove(name)
    for name in (DICTIONARY, *sums):
        if store.exists(f"{WORK}/{name}"):
            store.replace(f"{WORK}/{name}", name)
        assert store.exists(name), name
    if not options.columns and not options.split.validates:
        store.remove("val_data.bin")
    if options.columns:
        meta = split_metadata(options, description["vocab_sizes"])
        text = _text(metadata.FILE_NAME, lambda folder: metadata.write_metadata(folder, meta))
        for folder in folders:
            store.write(_within(folder, metadata.FILE_NAME), text)
    store.write(RECORDS, json.dumps(description, indent=2) + "\n")
    for folder in folders:
        entries = {
            name.rpartition("/")[2]: value
            for name, value in sums.items()
            if name.rpartition("/")[0] == folder
        }
        text = _text(
            checksums.FILE_NAME,
            lambda temporary, entries=entries: checksums.write_checksums(temporary, entries),  # type: ignore[misc]
        )
        store.write(_within(folder, checksums.FILE_NAME), text)
    store.remove(WORK)


_DESCRIPTIONS = (metadata.FILE_NAME, checksums.FILE_NAME)


def split_metadata(options: Options, vocab_sizes: list[int]) -> metadata.Metadata:
    """The description of a split folder, as split_bin.py writes it."""
    return metadata.Metadata(
        vocab_sizes=tuple(vocab_sizes),
        label_raw_type="int32",
        dense_raw_type="int32",
        category_raw_type="int32",
        dense_log=True,
        num_dense=options.num_dense,
        dense_log_offset=options.rules.dense_log_offset,
        packed_ids=plan(vocab_sizes) if options.pack_ids else None,
    )


def _text(name: str, write: Callable[[Path], None]) -> str:
    """What a function that writes into a local folder writes, for folders that are not local."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return (Path(folder) / name).read_text()


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
