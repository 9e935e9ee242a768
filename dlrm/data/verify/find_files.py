"""Which data files a folder has, and what each must hold.

Three kinds of parts: record files beside `records.json`, split folders and per-category folders,
either the folder itself or `train/`, `test/` and their like within. It reads descriptions and sizes
only; what is wrong with one file does not hide what is wrong with another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dlrm.data.per_category import id_type
from dlrm.formats.checksums import FileSum, read_checksums
from dlrm.formats.column_file import ColumnFile
from dlrm.formats.metadata import read_json_object, read_metadata, read_per_category_metadata
from dlrm.formats.packed_ids import Packing
from dlrm.formats.records import DESCRIPTION_NAME, VALUE_BYTES

T = TypeVar("T")

LABEL, DENSE, IDS, RECORDS = "label", "dense", "ids", "records"
# The names of parts, as folders and in "train_data.bin", and in records.json.
PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
REWRITE = "write the folder again from its source"


@dataclass(frozen=True)
class DataFile:
    """One file of samples.

    Attributes:
        file: the open file, whose size fits.
        content: LABEL, DENSE, IDS or RECORDS (all of them, row by row).
        first_table: table of the first id of a row.
        tables: ids of a row.
        packing: how the ids stand in the words of a row; None: one a word.
    """

    file: ColumnFile
    content: str
    first_table: int = 0
    tables: int = 0
    packing: Packing | None = None


@dataclass
class Part:
    """One set of samples, such as the training data.

    Attributes:
        name: for the reader of a report.
        folder: where its files are.
        role: "train", "validation", "test", or "" if its name does not tell.
        kind: "records", "split", "packed", "per category", or "absent": no files at all.
        vocab_sizes: rows of each table.
        num_dense: dense columns.
        samples: how many; 0 if no file tells.
        lowest_dense: every dense value must be above; None: any finite one will do.
        files: those whose size is right.
        faults: what is wrong, a line each.
        positives: samples of label 1, once their labels have been read.
    """

    name: str
    folder: Path
    role: str
    kind: str
    vocab_sizes: tuple[int, ...] = ()
    num_dense: int = 0
    samples: int = 0
    lowest_dense: float | None = None
    files: list[DataFile] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    positives: int | None = None

    def attempt(self, action: Callable[[], T]) -> T | None:
        """The result of `action`, or None and one fault more."""
        try:
            return action()
        except (ValueError, OSError) as error:
            self.faults.append(str(error))
            return None

    def add(
        self, name: str, dtype: str, width: int, content: str, rows: int | None, **ids: Any
    ) -> None:
        """Open a file of the part; its first one, without `rows`, says how many samples."""
        file = self.attempt(lambda: ColumnFile(self.folder / name, dtype, width, rows))
        if file is not None:
            self.samples = file.rows
            self.files.append(DataFile(file, content, **ids))


def find_parts(
    folder: Path, per_category: bool | None, wanted: Sequence[str]
) -> tuple[list[Part], dict[str, Any] | None]:
    """The parts of a folder, and the content of its `records.json`.

    Args:
        folder: the data.
        per_category: whether split folders have a file a table; None: look.
        wanted: folders of parts that must be there, and are all that is looked at; empty: all.

    Raises:
        ValueError: there is no data, or `records.json` is malformed.
        OSError: the folder cannot be read.
    """
    description = None
    if not wanted and (folder / DESCRIPTION_NAME).exists():
        description = read_json_object(folder / DESCRIPTION_NAME, "run preprocess again")
    parts = []
    if description is not None:
        recorded = [name for name in PARTS if (folder / f"{name}_data.bin").exists()]
        parts += [_records(folder, name, description) for name in recorded]
    if (folder / "label.bin").exists() and not wanted:
        parts.append(_split(folder, folder.resolve().name, per_category))
    for name in wanted or PARTS:
        if wanted or (folder / name).is_dir():
            part = _split(folder / name, name, per_category)
            _check_count(part, description)
            parts.append(part)
    if not parts:
        raise ValueError(
            f"{folder}: expected records.json beside train_data.bin, or label.bin, or train/ and "
            "test/, found none of them; give a folder that preprocess or split_bin.py wrote"
        )
    return parts + _absent(folder, parts, description or {}), description


def _absent(folder: Path, parts: Sequence[Part], description: dict[str, Any]) -> list[Part]:
    """Parts without files, for those that `records.json` speaks of and nobody wrote or kept."""
    absent = []
    for role in ("train", "validation", "test"):
        samples = description.get(f"{role}_samples")
        if samples and all(part.role != role for part in parts):
            fault = (
                f"{folder}: expected a record file or folder of {samples} {role} samples "
                f"(records.json), found none; {REWRITE}"
            )
            absent.append(Part(role, folder, role, "absent", faults=[fault]))
    return absent


def _records(folder: Path, name: str, description: dict[str, Any]) -> Part:
    part = Part(f"{name}_data.bin", folder, PARTS[name], "records")
    try:
        part.vocab_sizes = tuple(description["vocab_sizes"])
        part.num_dense = int(description["num_dense"])
        part.lowest_dense = -float(description["dense_log_offset"])
    except (KeyError, TypeError, ValueError) as error:
        part.faults.append(
            f"{folder / DESCRIPTION_NAME}: expected vocab_sizes, num_dense and dense_log_offset, "
            f"found a fault with {error}; run preprocess again"
        )
        return part
    tables = len(part.vocab_sizes)
    width = 1 + part.num_dense + tables
    size = (folder / part.name).stat().st_size
    samples = description.get(f"{part.role}_samples")
    if samples is not None and size != samples * width * VALUE_BYTES:
        part.faults.append(
            f"{folder / part.name}: expected {samples} records (records.json) of "
            f"{width * VALUE_BYTES} bytes, found {size} bytes; run preprocess again"
        )
        return part
    part.add(part.name, "int32", width, RECORDS, None, tables=tables)
    return part


def _split(folder: Path, name: str, per_category: bool | None) -> Part:
    if per_category is None:
        columns = {path.name for path in folder.glob("category*.bin")}
        per_category = bool(columns) and "category.bin" not in columns
    part = Part(name, folder, PARTS.get(name, ""), "per category" if per_category else "split")
    if per_category:
        part.attempt(lambda: _open_per_category(part))
    else:
        part.attempt(lambda: _open_split(part))
    return part


def _open_split(part: Part) -> None:
    content = read_metadata(part.folder)
    part.vocab_sizes, part.num_dense = content.vocab_sizes, content.num_dense
    part.lowest_dense = -content.dense_log_offset if content.dense_log else None
    tables, packing = len(content.vocab_sizes), content.packed_ids
    if packing is not None:
        part.kind = "packed"
    part.add("label.bin", content.label_raw_type, 1, LABEL, None)
    rows = part.samples or None
    part.add("dense.bin", content.dense_raw_type, content.num_dense, DENSE, rows)
    ids: dict[str, Any] = {"tables": tables, "packing": packing}
    part.add("category.bin", content.category_raw_type, content.category_width, IDS, rows, **ids)


def _open_per_category(part: Part) -> None:
    part.vocab_sizes, part.num_dense = read_per_category_metadata(part.folder)
    part.add("label.bin", "uint8", 1, LABEL, None)
    rows = part.samples or None
    part.add("dense.bin", "float16", part.num_dense, DENSE, rows)
    for table, size in enumerate(part.vocab_sizes):
        part.add(f"category_{table}.bin", id_type(size), 1, IDS, rows, first_table=table, tables=1)


def _check_count(part: Part, description: dict[str, Any] | None) -> None:
    expected = (description or {}).get(f"{part.role}_samples")
    if expected is not None and part.samples and part.samples != expected:
        part.faults.append(
            f"{part.folder}: expected {expected} samples (records.json), found {part.samples}; "
            f"{REWRITE}"
        )


def read_sums(folders: Sequence[Path]) -> tuple[dict[Path, FileSum], list[Path], list[str]]:
    """The checksums of some folders.

    Returns:
        The sum of each file that has one, the folders without any, and faults.
    """
    sums: dict[Path, FileSum] = {}
    without, faults = [], []
    for folder in folders:
        try:
            entries = read_checksums(folder)
        except (ValueError, OSError) as error:
            faults.append(str(error))
            continue
        if entries is None:
            without.append(folder)
        sums.update({folder / name: entry for name, entry in (entries or {}).items()})
    return sums, without, faults
