"""The artifact: the folder that an export makes and the scorer maps, with its `artifact.json`.

This module knows the names of the files, the description and the checksums. How rows are encoded,
and what computes with them, is not its concern.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.describe import first_damage
from dlrm.checkpoint.manifest import ModelShape
from dlrm.checkpoint.safetensors_file import FileDigest, parse_header
from dlrm.formats import atomic_files
from dlrm.formats.json_files import json_text, read_json_object, sum_of_json
from dlrm.formats.packed_ids import Packing
from serving.row_encoding import TABLE_TYPES

FORMAT = 1
DESCRIPTION = "artifact.json"
TABLES_FILE = "tables.safetensors"
ROW_ORDER_FILE = "row_order.safetensors"
DENSE_FILE = "dense.safetensors"
DICTIONARY_FILE = "dictionary.safetensors"
KNOWN_IDS_FILE = "known_ids.safetensors"
MODEL_CARD_JSON, MODEL_CARD_MD = "model_card.json", "model_card.md"
SAVED_MODEL = "saved_model"

ROWS, TABLE_SCALES = "rows", "table_scales"  # tensors of the tables' file
POSITIONS = "positions"  # the tensor of the row order's file
VALUES, IDS = "values", "ids"  # tensors of the dictionary's file; that of known ids has the latter

DENSE_TYPES = ("float32", "int8")

_REMEDY = "export it again with `python3 -m serving export`"
_LONGEST_HEADER = 1 << 20  # bytes; a longer one is damaged


@dataclass(frozen=True)
class KnownIds:
    """The ids with a row, where only those that occurred in training have one of their own.

    Row 0 of each table is that of all its other ids, row i + 1 that of its i-th known id.

    Attributes:
        counts: Number of known ids of each table.
        seed: The seed of the initial values that other ids have, beside a row 0 of zeros; None if
            row 0 is the one that they shared in training.
    """

    counts: tuple[int, ...]
    seed: int | None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> KnownIds:
        """Those of `known_ids` of an artifact's description."""
        return cls(tuple(content["counts"]), content["seed"])


@dataclass(frozen=True)
class Artifact:
    """The content of `artifact.json`, and the folder that it describes.

    Attributes:
        folder: The folder of the artifact.
        model: The shape of the model.
        tables: How rows are stored, one of `TABLE_TYPES`.
        dense: How the MLPs are stored, one of `DENSE_TYPES`.
        step: Number of steps that training had done.
        row_order: Whether rows are in order of use instead of by key.
        packing: How several ids share a word.
        dictionary: The rules for raw values; None without a dictionary.
        files: The digest of each file, by its name within the folder.
        known_ids: The ids with a row of their own; None if all have one.
    """

    folder: Path
    model: ModelShape
    tables: str
    dense: str
    step: int
    row_order: bool
    packing: Packing
    dictionary: Mapping[str, Any] | None
    files: Mapping[str, FileDigest]
    known_ids: KnownIds | None = None

    @property
    def rows_of_tables(self) -> tuple[int, ...]:
        """The number of rows of each table."""
        if self.known_ids is None:
            return self.model.vocab_sizes
        return tuple(1 + count for count in self.known_ids.counts)

    @property
    def rows(self) -> int:
        """The number of rows of all tables."""
        return sum(self.rows_of_tables)

    def write(self) -> None:
        """Writes `artifact.json`, durably."""
        content = {
            "format": FORMAT,
            "model": dataclasses.asdict(self.model),
            "tables": self.tables,
            "dense": self.dense,
            "step": self.step,
            "row_order": self.row_order,
            "packed_ids": self.packing.to_json(),
            "dictionary": self.dictionary,
            "known_ids": None if self.known_ids is None else dataclasses.asdict(self.known_ids),
            "files": {name: self.files[name].to_json() for name in sorted(self.files)},
        }
        content["crc32"] = sum_of_json(content)
        atomic_files.write_text(self.folder / DESCRIPTION, json_text(content, indent=1))


def read_artifact(folder: Path) -> Artifact:
    """Reads and checks the description of an artifact; none of its other files is opened.

    Raises:
        ValueError: The folder holds no artifact, or its description is damaged or of another
            version.
    """
    path = folder / DESCRIPTION
    try:
        content = read_json_object(path, _REMEDY)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder}: expected an artifact, found no {DESCRIPTION} in it; {_REMEDY}"
        ) from None
    try:
        if content.pop("crc32") != sum_of_json(content):
            raise ValueError(
                f"{path}: damaged: its CRC-32 is not the one that was written; {_REMEDY}"
            )
        if content["format"] != FORMAT:
            raise ValueError(
                f"{path}: expected format {FORMAT}, found {content['format']}; {_REMEDY}"
            )
        known_ids = content.get("known_ids")  # which older versions did not write
        artifact = Artifact(
            folder,
            ModelShape.from_json(content["model"]),
            content["tables"],
            content["dense"],
            content["step"],
            content["row_order"],
            Packing.from_json(content["packed_ids"]),
            content["dictionary"],
            {name: FileDigest.from_json(entry) for name, entry in content["files"].items()},
            None if known_ids is None else KnownIds.from_json(known_ids),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged: missing or malformed {error}; {_REMEDY}") from None
    for name, value, known in (
        ("tables", artifact.tables, TABLE_TYPES),
        ("dense", artifact.dense, DENSE_TYPES),
    ):
        if value not in known:
            raise ValueError(
                f"{path}: {name}: expected one of {', '.join(known)}, found {value!r}; {_REMEDY}"
            )
    return artifact


def verify_artifact(artifact: Artifact, names: Iterable[str] | None = None) -> None:
    """Reads every byte of an artifact, with all cores.

    Args:
        artifact: The artifact.
        names: The files to read, by their names within the folder; None for all.

    Raises:
        ValueError: A file is missing or damaged; the message names it and the offset.
    """
    for name in artifact.files if names is None else names:
        problem = first_damage(artifact.folder / name, artifact.files[name])
        if problem:
            raise ValueError(f"{problem}; {_REMEDY}")


def map_tensors(path: Path, remedy: str = _REMEDY) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file as read-only views into it; nothing is read or checked.

    Values that do not lie at a multiple of their own size are copied.

    Args:
        path: The file.
        remedy: What to do about a file that is none, for the error message.

    Raises:
        ValueError: The file is no safetensors file, or is cut.
        OSError: The file cannot be opened.
    """
    tensors = {}
    try:
        content = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        (length,) = struct.unpack("<Q", content[:8].tobytes())
        if length > min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError(f"a header of {length} bytes")
        for name, (spec, start) in parse_header(content[8 : 8 + length].tobytes()).items():
            dtype, shape = spec
            stop = start + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            if stop > len(content):
                raise ValueError(f"the end at offset {len(content)}, before that of {name}, {stop}")
            values = content[start:stop].view(dtype).reshape(shape)
            tensors[name] = values if values.flags.aligned else values.copy()
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{path}: expected a safetensors file, found {error}; {remedy}") from None
    return tensors
