"""Which data files a folder has, and what each must hold.

Three kinds of parts: record files beside `records.json`, split folders and per-category folders,
either the folder itself or `train/`, `test/` and their like within. It reads descriptions and sizes
only; what is wrong with one file does not hide what is wrong with another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dlrm.data.per_category import id_type
from dlrm.formats import file_names
from dlrm.formats.bag_files import BagFiles
from dlrm.formats.bags import BagTable
from dlrm.formats.checksums import FileSum, read_checksums
from dlrm.formats.column_file import ColumnFile
from dlrm.formats.json_files import read_json_object
from dlrm.formats.metadata import read_metadata, read_per_category_metadata
from dlrm.formats.packed_ids import Packing
from dlrm.formats.records import VALUE_BYTES

T = TypeVar("T")

LABEL, DENSE, IDS, RECORDS = "label", "dense", "ids", "records"
OFFSETS, WEIGHTS = "offsets", "weights"
# The names of parts, as folders and in "train_data.bin", and in records.json.
PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
REWRITE = "write the folder again from its source"


@dataclass(frozen=True)
class DataFile:
    """One file of samples.

    Attributes:
        file: The open file, whose size is right.
        content: LABEL, DENSE, IDS, or RECORDS for all of them row by row; OFFSETS or WEIGHTS of
            bags.
        tables: The table of each id in a row.
        packing: How a row's words hold the ids; None for one id in each word.
        max_ids: The most ids of a bag; 0 if the table has none.
    """

    file: ColumnFile
    content: str
    tables: Sequence[int] = ()
    packing: Packing | None = None
    max_ids: int = 0


@dataclass
class DataPart:
    """One set of samples, such as the training data.

    Attributes:
        name: The name in a report.
        folder: The folder of its files.
        role: "train", "validation", "test", or "" if the name does not say.
        kind: "records", "split", "packed", "per category", "empty" without samples, or "absent" if
            it has no files.
        vocab_sizes: Number of rows of each table.
        num_dense: Number of dense columns.
        samples: Number of samples; 0 if unknown.
        lowest_dense: Bound that every dense value must exceed; None accepts any finite value.
        files: The files whose size is right.
        faults: One line for each fault.
        positives: Number of samples with label 1, once the labels have been read.
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
        """Returns the result of `action`; an error becomes a fault, and the result is None."""
        try:
            return action()
        except (ValueError, OSError) as error:
            self.faults.append(str(error))
            return None

    def add(
        self, name: str, dtype: str, width: int, content: str, rows: int | None, **ids: Any
    ) -> None:
        """Opens a file of the part; the first one, without `rows`, gives the number of samples."""
        file = self.attempt(lambda: ColumnFile(self.folder / name, dtype, width, rows))
        if file is not None:
            self.samples = file.rows
            self.files.append(DataFile(file, content, **ids))


def find_parts(
    folder: Path, per_category: bool | None, wanted: Sequence[str]
) -> tuple[list[DataPart], dict[str, Any] | None]:
    """The parts of a folder, and the content of its `records.json`.

    Args:
        folder: The folder of the data.
        per_category: Whether split folders have one file for each table; None to detect it.
        wanted: Subfolders that must exist and are the only ones checked; empty for all that exist.

    Raises:
        ValueError: There is no data, or `records.json` is malformed.
        OSError: The folder cannot be read.
    """
    description = None
    if not wanted and (folder / file_names.RECORDS).exists():
        description = read_json_object(folder / file_names.RECORDS, "run preprocess again")
    parts = []
    if description is not None:
        recorded = [name for name in PARTS if (folder / file_names.record_file(name)).exists()]
        parts += [_records(folder, name, description) for name in recorded]
    if (folder / file_names.LABEL).exists() and not wanted:
        parts.append(_split(folder, folder.resolve().name, per_category))
    for name in wanted or PARTS:
        if wanted or (folder / name).is_dir():
            part = _empty(folder / name, name, description)
            part = part or _split(folder / name, name, per_category)
            _check_count(part, description)
            parts.append(part)
    if not parts:
        raise ValueError(
            f"{folder}: expected records.json beside train_data.bin, or label.bin, or train/ and "
            "test/, found none of them; give a folder that preprocess or split_bin.py wrote"
        )
    return parts + _absent(folder, parts, description or {}), description


def _empty(folder: Path, name: str, description: dict[str, Any] | None) -> DataPart | None:
    """Returns a part that has no samples by `records.json`, such as that of --test_fraction=0."""
    labels = folder / file_names.LABEL
    none = (description or {}).get(f"{PARTS[name]}_samples") == 0
    if not none or not labels.exists() or labels.stat().st_size:
        return None
    return DataPart(name, folder, PARTS[name], "empty")


def _absent(folder: Path, parts: Sequence[DataPart], description: dict[str, Any]) -> list[DataPart]:
    """Parts that `records.json` describes and that have no files."""
    absent = []
    for role in ("train", "validation", "test"):
        samples = description.get(f"{role}_samples")
        if samples and all(part.role != role for part in parts):
            fault = (
                f"{folder}: expected a record file or folder of {samples} {role} samples "
                f"(records.json), found none; {REWRITE}"
            )
            absent.append(DataPart(role, folder, role, "absent", faults=[fault]))
    return absent


def _records(folder: Path, name: str, description: dict[str, Any]) -> DataPart:
    """Opens a record file as `records.json` describes it."""
    part = DataPart(file_names.record_file(name), folder, PARTS[name], "records")
    try:
        part.vocab_sizes = tuple(description["vocab_sizes"])
        part.num_dense = int(description["num_dense"])
        part.lowest_dense = -float(description["dense_log_offset"])
    except (KeyError, TypeError, ValueError) as error:
        part.faults.append(
            f"{folder / file_names.RECORDS}: expected vocab_sizes, num_dense and dense_log_offset, "
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
    if samples != 0:
        part.add(part.name, "int32", width, RECORDS, None, tables=range(tables))
    return part


def _split(folder: Path, name: str, per_category: bool | None) -> DataPart:
    """Opens the files of a split folder of either kind."""
    if per_category is None:
        columns = {path.name for path in folder.glob("category*.bin")}
        per_category = bool(columns) and file_names.CATEGORY not in columns
    part = DataPart(name, folder, PARTS.get(name, ""), "per category" if per_category else "split")
    if per_category:
        part.attempt(lambda: _open_per_category(part))
    else:
        part.attempt(lambda: _open_split(part))
    return part


def _open_split(part: DataPart) -> None:
    """Opens the three column files, as `metadata.json` describes them."""
    content = read_metadata(part.folder)
    part.vocab_sizes, part.num_dense = content.vocab_sizes, content.num_dense
    part.lowest_dense = -content.dense_log_offset if content.dense_log else None
    packing = content.packed_ids
    if packing is not None:
        part.kind = "packed"
    part.add(file_names.LABEL, content.label_raw_type, 1, LABEL, None)
    rows = part.samples or None
    part.add(file_names.DENSE, content.dense_raw_type, content.num_dense, DENSE, rows)
    singles = content.single_tables
    if singles:
        ids: dict[str, Any] = {"tables": singles, "packing": packing}
        part.add(
            file_names.CATEGORY, content.category_raw_type, content.category_width, IDS, rows, **ids
        )
    for bag in content.bags if part.samples else ():
        part.attempt(partial(_open_bags, part, bag))


def _open_bags(part: DataPart, bag: BagTable) -> None:
    """Opens the files of one table's bags."""
    files = BagFiles(part.folder, bag, part.samples)
    for file, content in zip(files.files, (IDS, OFFSETS, WEIGHTS)):
        part.files.append(DataFile(file, content, (bag.table,), max_ids=bag.max_ids))


def _open_per_category(part: DataPart) -> None:
    """Opens the labels, the dense values and one file of ids for each table."""
    part.vocab_sizes, part.num_dense = read_per_category_metadata(part.folder)
    part.add(file_names.LABEL, "uint8", 1, LABEL, None)
    rows = part.samples or None
    part.add(file_names.DENSE, "float16", part.num_dense, DENSE, rows)
    for table, size in enumerate(part.vocab_sizes):
        part.add(
            file_names.category_file(table),
            id_type(size),
            1,
            IDS,
            rows,
            tables=(table,),
        )


def _check_count(part: DataPart, description: dict[str, Any] | None) -> None:
    expected = (description or {}).get(f"{part.role}_samples")
    if expected is not None and part.samples and part.samples != expected:
        part.faults.append(
            f"{part.folder}: expected {expected} samples (records.json), found {part.samples}; "
            f"{REWRITE}"
        )


def read_sums(folders: Sequence[Path]) -> tuple[dict[Path, FileSum], list[Path], list[str]]:
    """The checksums of some folders.

    Returns:
        The checksum of each file that has one, the folders without checksums, and faults.
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
