"""The description of a split folder: `metadata.json`, read, checked and written.

How columns are read or split is the concern of `dlrm.data`. The five keys of the SOK benchmark keep
their names and types; `num_dense`, `dense_log_offset`, `packed_ids` and `bags` are optional.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm.formats import file_names
from dlrm.formats.bags import BagTable, check_bag_tables
from dlrm.formats.file_names import StrPath
from dlrm.formats.json_files import read_json_object, write_json_object
from dlrm.formats.packed_ids import Packing

RAW_TYPES = ("int32", "float32")
DEFAULT_DENSE_LOG_OFFSET = 3.0
MAX_VOCAB_SIZE = 2**31  # ids are int32

_REQUIRED_KEYS = (
    "vocab_sizes",
    "label_raw_type",
    "dense_raw_type",
    "category_raw_type",
    "dense_log",
)


@dataclass(frozen=True)
class Metadata:
    """The layout of `label.bin`, `dense.bin` and `category.bin`, as `metadata.json` describes it.

    Attributes:
        vocab_sizes: Number of rows of each table, in the order of the categorical columns.
        label_raw_type: The type of the values in `label.bin`, `int32` or `float32`.
        dense_raw_type: The type of the values in `dense.bin`, `int32` or `float32`.
        category_raw_type: The type of the values in `category.bin`, `int32` or `float32`.
        dense_log: Whether the loader replaces a dense x by ln(x + dense_log_offset).
        num_dense: Number of dense columns.
        dense_log_offset: The number that the loader adds before the logarithm.
        packed_ids: How ids are packed into the words of `category.bin`; None if each word holds
            one id.
        bags: The tables that hold bags of ids, in files of their own; `category.bin` and
            `packed_ids` have the others alone.

    Raises:
        ValueError: A field has a value that no split folder can have.
    """

    vocab_sizes: tuple[int, ...]
    label_raw_type: str
    dense_raw_type: str
    category_raw_type: str
    dense_log: bool
    num_dense: int
    dense_log_offset: float = DEFAULT_DENSE_LOG_OFFSET
    packed_ids: Packing | None = None
    bags: tuple[BagTable, ...] = ()

    def __post_init__(self) -> None:
        check_vocab_sizes(self.vocab_sizes)
        for key in ("label_raw_type", "dense_raw_type", "category_raw_type"):
            value = getattr(self, key)
            if value not in RAW_TYPES:
                raise ValueError(f"{key}: expected one of {', '.join(RAW_TYPES)}, found {value!r}")
        if not isinstance(self.dense_log, bool):
            raise ValueError(f"dense_log: expected true or false, found {self.dense_log!r}")
        check_num_dense(self.num_dense)
        check_log_offset(self.dense_log_offset)
        check_bag_tables(self.bags, len(self.vocab_sizes))
        if self.packed_ids is not None:
            self.packed_ids.check([self.vocab_sizes[table] for table in self.single_tables])

    def to_json(self) -> dict[str, Any]:
        """The content of `metadata.json`."""
        content: dict[str, Any] = {
            "vocab_sizes": list(self.vocab_sizes),
            "label_raw_type": self.label_raw_type,
            "dense_raw_type": self.dense_raw_type,
            "category_raw_type": self.category_raw_type,
            "dense_log": self.dense_log,
            "num_dense": self.num_dense,
            "dense_log_offset": self.dense_log_offset,
        }
        if self.packed_ids is not None:
            content["packed_ids"] = self.packed_ids.to_json()
        if self.bags:
            content["bags"] = [bag.to_json() for bag in self.bags]
        return content

    @property
    def single_tables(self) -> tuple[int, ...]:
        """The tables without bags, which `category.bin` holds."""
        with_bags = {bag.table for bag in self.bags}
        return tuple(table for table in range(len(self.vocab_sizes)) if table not in with_bags)

    @property
    def category_width(self) -> int:
        """Number of 32-bit words of a sample in `category.bin`; 0 if there is no such file."""
        return len(self.single_tables) if self.packed_ids is None else self.packed_ids.words


def check_vocab_sizes(sizes: object) -> None:
    """Raises `ValueError` unless `sizes` is a non-empty list of integers in [1, 2**31]."""
    if not isinstance(sizes, (list, tuple)) or not sizes:
        raise ValueError(
            f"vocab_sizes: expected a list of integers, one per table, found {sizes!r}"
        )
    for table, size in enumerate(sizes):
        if not _is_int(size) or not 1 <= size <= MAX_VOCAB_SIZE:
            raise ValueError(
                f"vocab_sizes: expected integers from 1 to {MAX_VOCAB_SIZE}, "
                f"found {size!r} for table {table}"
            )


def check_num_dense(value: object) -> None:
    """Raises `ValueError` unless `value` is a positive integer."""
    if not isinstance(value, int) or not _is_int(value) or value < 1:
        raise ValueError(f"num_dense: expected a positive integer, found {value!r}")


def check_log_offset(value: object) -> None:
    """Raises `ValueError` unless `value` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"dense_log_offset: expected a finite number, found {value!r}")


def read_metadata(folder: StrPath) -> Metadata:
    """Reads and checks `folder/metadata.json`.

    Without the key `num_dense` the number follows from the sizes of `dense.bin` and `label.bin`.

    Raises:
        FileNotFoundError: `metadata.json`, or a file needed to infer `num_dense`, is missing.
        ValueError: The file is malformed, lacks a key or has an unknown value.
    """
    path = Path(folder) / file_names.METADATA
    remedy = "write it with split_bin.py"
    content = read_json_object(path, remedy)
    missing = [key for key in _REQUIRED_KEYS if key not in content]
    if missing:
        hint = ""
        if (Path(folder) / file_names.category_file(0)).exists():
            hint = ", or read category_0.bin and its like with --use_splited_dataset"
        raise ValueError(f"{path}: missing {', '.join(missing)}; {remedy}{hint}")
    num_dense = content.get("num_dense")
    if num_dense is None:
        # Both raw types take four bytes.
        num_dense = infer_num_dense(folder, label_bytes=4, dense_bytes=4)
    try:
        check_vocab_sizes(content["vocab_sizes"])
        packed = content.get("packed_ids")
        return Metadata(
            vocab_sizes=tuple(content["vocab_sizes"]),
            label_raw_type=content["label_raw_type"],
            dense_raw_type=content["dense_raw_type"],
            category_raw_type=content["category_raw_type"],
            dense_log=content["dense_log"],
            num_dense=num_dense,
            dense_log_offset=content.get("dense_log_offset", DEFAULT_DENSE_LOG_OFFSET),
            packed_ids=None if packed is None else Packing.from_json(packed),
            bags=_bags(content.get("bags", [])),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None


def _bags(content: object) -> tuple[BagTable, ...]:
    """The value of `bags`."""
    if not isinstance(content, list):
        raise ValueError(f"bags: expected a list of objects, found {content!r}")
    return tuple(map(BagTable.from_json, content))


def read_per_category_metadata(folder: StrPath) -> tuple[tuple[int, ...], int]:
    """Reads the `vocab_sizes` and the number of dense columns of a per-category folder.

    Its `metadata.json` needs no other key than `vocab_sizes`: labels take one byte, dense values
    are float16.

    Raises:
        FileNotFoundError: `metadata.json`, `label.bin` or `dense.bin` is missing.
        ValueError: The file is malformed or `vocab_sizes` is missing or wrong.
    """
    path = Path(folder) / file_names.METADATA
    content = read_json_object(path, 'write it as {"vocab_sizes": [...]}')
    num_dense = content.get("num_dense")
    if num_dense is None:
        num_dense = infer_num_dense(folder, label_bytes=1, dense_bytes=2)
    try:
        if "vocab_sizes" not in content:
            raise ValueError("missing vocab_sizes")
        check_vocab_sizes(content["vocab_sizes"])
        check_num_dense(num_dense)
    except ValueError as error:
        raise ValueError(f'{path}: {error}; list the tables\' sizes as "vocab_sizes"') from None
    return tuple(content["vocab_sizes"]), num_dense


def infer_num_dense(folder: StrPath, *, label_bytes: int, dense_bytes: int) -> int:
    """The number of dense columns that the sizes of `dense.bin` and `label.bin` imply.

    Args:
        folder: A split folder.
        label_bytes: Bytes of one label.
        dense_bytes: Bytes of one dense value.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The sizes do not give a whole number of columns.
    """
    label_size = file_size(Path(folder) / file_names.LABEL)
    dense_path = Path(folder) / file_names.DENSE
    dense_size = file_size(dense_path)
    samples = label_size // label_bytes
    if samples == 0:
        raise ValueError(
            f"{Path(folder) / file_names.LABEL}: expected at least one sample of {label_bytes} "
            f"bytes, found {label_size} bytes; write it again with split_bin.py"
        )
    columns, rest = divmod(dense_size, samples * dense_bytes)
    if rest or columns == 0:
        raise ValueError(
            f"{dense_path}: expected a multiple of {samples * dense_bytes} bytes because label.bin "
            f"holds {samples} samples, found {dense_size} bytes; write both again with split_bin.py"
        )
    return columns


def file_size(path: Path) -> int:
    """The size in bytes; raises a one-line `FileNotFoundError` that names the file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; write the folder with split_bin.py"
        ) from None


def write_metadata(folder: StrPath, metadata: Metadata) -> None:
    """Writes `folder/metadata.json`, complete or not at all."""
    write_json_object(Path(folder) / file_names.METADATA, metadata.to_json())


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
