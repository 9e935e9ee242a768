"""Makes a checkpoint from the files that `sok.dump` wrote.

The format is that of HugeCTR's sparse_operation_kit/sparse_operation_kit/dump_load.py (the names
are made in dynamic_variable.py and distributed_variable.py of the same folder). A variable is two
files, `<name>-key` and `<name>-weight`, where `_` replaces every punctuation mark of the name. Each
file is a header of 296 bytes, whose field for the name stays blank, and an array in the machine's
byte order. Row i of the weights belongs to key i; the keys are in the order in which ranks and
rounds sent them. The width of a row is not stored but follows from the file sizes. Optimizer slots
are separate files, `<name>-<optimizer>-<slot>`, which are not read: plain SGD has none.
"""

from __future__ import annotations

import mmap
import re
import string
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint import directory
from dlrm.checkpoint.manifest import ROWS, Manifest, ModelShape, Position, tables_file
from dlrm.checkpoint.safetensors_file import allocate, digest_file

_HEADER = struct.Struct(">256sI32sI")  # name, kind of file, name of the slot, type of the values
_KINDS = {"key": 0, "weight": 1}
_KEY_TYPES = {0: "<i4", 1: "<i8", 2: "<u4", 3: "<u8"}
_WEIGHT_TYPES = {4: "<f2", 5: "<f4", 6: "<f8"}

_CHECKED_KEYS = 1 << 20  # keys checked at a time
# Rows copied at a time. Each may lie in a different memory page, and all touched pages stay in
# memory.
_MOVED_ROWS = 1 << 13


@dataclass(frozen=True)
class Variable:
    """A dumped variable; row i of the weights belongs to key i.

    Attributes:
        key_path: The file of keys.
        key_type: The integer type of a key.
        weight_path: The file of rows.
        weight_type: The floating-point type of a value.
        count: Number of keys and of rows.
        width: Number of values in a row.
    """

    key_path: Path
    key_type: np.dtype[Any]
    weight_path: Path
    weight_type: np.dtype[Any]
    count: int
    width: int

    def keys(self, first: int, last: int) -> NDArray[Any]:
        """Reads keys [first, last) in the order of the file, `key_type` [last - first]."""
        offset = _HEADER.size + first * self.key_type.itemsize
        return np.fromfile(self.key_path, self.key_type, last - first, offset=offset)

    def rows(self, first: int, last: int) -> NDArray[Any]:
        """Reads the rows of keys [first, last), `weight_type` [last - first, width]."""
        offset = _HEADER.size + first * self.width * self.weight_type.itemsize
        count = (last - first) * self.width
        values = np.fromfile(self.weight_path, self.weight_type, count, offset=offset)
        return values.reshape(last - first, self.width)


def import_dump(
    dump: Path,
    checkpoint_dir: Path,
    vocab_sizes: Sequence[int],
    names: Sequence[str],
    on_message: Callable[[str], None],
) -> None:
    """Makes a checkpoint of step 0 from a dump whose keys are in any order.

    It holds the tables only. Values become float32; wider types are rounded.

    Args:
        dump: The directory that `sok.dump` wrote.
        checkpoint_dir: The directory to write the checkpoint to; created if missing.
        vocab_sizes: Number of rows of each table.
        names: The names of the variables in table order, whose keys are ids; or a single name,
            whose keys are fused. May be empty if the dump holds a single variable.
        on_message: Called with each line about what was found and written.

    Raises:
        ValueError: The dump does not hold each row of these tables exactly once, or the directory
            already holds checkpoints.
        OSError: A file cannot be read or written.
    """
    variables = [open_variable(dump, name) for name in names or [_only_name(dump)]]
    sizes = [sum(vocab_sizes)] if len(variables) == 1 else list(vocab_sizes)
    if len(variables) != len(sizes):
        raise ValueError(
            f"--names: expected one variable with fused keys, or {len(sizes)} in table order, "
            f"found {len(variables)}"
        )
    width = variables[0].width
    for variable, size in zip(variables, sizes):
        if variable.width != width:
            raise ValueError(
                f"{variable.weight_path}: expected rows of {width} values like those of "
                f"{variables[0].weight_path}, found {variable.width}"
            )
        check_keys(variable, size)
        on_message(f"{variable.weight_path}: {size:,} rows of {width} values")
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    with directory.lock(checkpoint_dir):
        if present := directory.finished(checkpoint_dir):
            raise ValueError(f"{present[-1]}: already exists; choose another OUT")
        directory.clean(checkpoint_dir)
        unfinished = directory.unfinished_path(checkpoint_dir, 0)
        unfinished.mkdir()
        try:
            path = unfinished / tables_file(0, 1)
            _write_rows(path, variables, sizes)
            model = ModelShape(None, tuple(vocab_sizes), width, None, None)
            files = {path.name: digest_file(path)}
            Manifest(Position(0, 0, 0), model, {}, {}, 1, files).write(unfinished)
            made = directory.commit(unfinished)
            on_message(f"{made}: made; main.py takes it with --resume={checkpoint_dir}")
        finally:
            directory.clean(checkpoint_dir)


def open_variable(dump: Path, name: str) -> Variable:
    """Reads the two headers of a variable.

    Args:
        dump: The directory that `sok.dump` wrote.
        name: The variable's name in TensorFlow or in the file names.

    Raises:
        ValueError: A file is malformed, or the two do not fit each other.
        OSError: A file is missing.
    """
    stem = re.sub(f"[{re.escape(string.punctuation)}]", "_", name)
    keys, weights = dump / f"{stem}-key", dump / f"{stem}-weight"
    key_type = _read_header(keys, "key", _KEY_TYPES)
    weight_type = _read_header(weights, "weight", _WEIGHT_TYPES)
    count, rest = divmod(keys.stat().st_size - _HEADER.size, key_type.itemsize)
    if rest or not count:
        raise ValueError(
            f"{keys}: expected keys of {key_type.itemsize} bytes after a header of {_HEADER.size}, "
            f"found {keys.stat().st_size} bytes in all; copy the dump again"
        )
    size = weights.stat().st_size - _HEADER.size
    width, rest = divmod(size, count * weight_type.itemsize)
    if rest or not width:
        raise ValueError(
            f"{weights}: expected equally wide rows of {weight_type.name} for the {count} keys of "
            f"{keys}, found {size} bytes after the header; copy the dump again"
        )
    return Variable(keys, key_type, weights, weight_type, count, width)


def check_keys(variable: Variable, rows: int) -> None:
    """Checks that the keys are 0 .. rows - 1, each once, in any order.

    Raises:
        ValueError: Keys are missing, repeated or out of range; the message gives the number and
            the lowest key of each kind.
    """
    seen = np.zeros(-(-rows // 8), np.uint8)  # one bit per key
    outside, repeated, found = _Found(), _Found(), 0
    for first in range(0, variable.count, _CHECKED_KEYS):
        keys = variable.keys(first, min(first + _CHECKED_KEYS, variable.count))
        # Compared in the type of the file: uint64 reaches beyond int64.
        good = (keys >= 0) & (keys < rows)
        outside.add(keys[~good], int(np.sum(~good)))
        keys, counts = np.unique(keys[good].astype(np.int64), return_counts=True)
        bits = np.left_shift(1, keys & 7).astype(np.uint8)
        new = (seen[keys >> 3] & bits) == 0
        repeated.add(keys[~new | (counts > 1)], int(counts.sum() - new.sum()))
        np.bitwise_or.at(seen, keys >> 3, bits)
        found += int(new.sum())
    problems = []
    if outside.count:
        problems.append(f"{outside.count} outside of that, the first {outside.lowest}")
    if repeated.count:
        problems.append(f"{repeated.count} there already, the first {repeated.lowest}")
    if found < rows:
        problems.append(f"{rows - found} missing, the first {_first_clear(seen)}")
    if problems:
        raise ValueError(
            f"{variable.key_path}: expected each key from 0 to {rows - 1} once, found "
            f"{'; '.join(problems)}; give the vocabulary sizes of the run that wrote the dump"
        )


class _Found:
    """Counts the keys with one fault, and keeps the lowest of them."""

    def __init__(self) -> None:
        self.count = 0
        self.lowest: int | None = None

    def add(self, keys: NDArray[Any], count: int) -> None:
        """Adds `count` faulty keys; `keys` holds each distinct one at least once."""
        self.count += count
        if len(keys):
            lowest = int(keys.min())
            self.lowest = lowest if self.lowest is None else min(self.lowest, lowest)


def _first_clear(bits: NDArray[np.uint8]) -> int:
    """Position of the lowest bit that is 0, if there is one."""
    byte = int(np.argmax(bits != 0xFF))
    return 8 * byte + int(np.argmin(np.unpackbits(bits[byte : byte + 1], bitorder="little")))


def _write_rows(path: Path, variables: Sequence[Variable], sizes: Sequence[int]) -> None:
    """Writes each row to the position of its key in a new tables file."""
    rows, width = sum(sizes), variables[0].width
    start = allocate(path, {ROWS: (np.dtype("<f4"), (rows, width))})
    with open(path, "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    table = np.frombuffer(mapping, "<f4", offset=start).reshape(rows, width)
    first_key = 0
    for variable, size in zip(variables, sizes):
        for first in range(0, variable.count, _MOVED_ROWS):
            last = min(first + _MOVED_ROWS, variable.count)
            keys = variable.keys(first, last).astype(np.int64)
            table[first_key + keys] = variable.rows(first, last)
            # Drops the pages from this process; the kernel keeps and writes their content.
            mapping.madvise(mmap.MADV_DONTNEED)
        first_key += size


def _read_header(path: Path, kind: str, types: dict[int, str]) -> np.dtype[Any]:
    """Checks the header of a file and returns the type of the values that follow it."""
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    if len(header) == _HEADER.size:
        _, kind_code, _, type_code = _HEADER.unpack(header)
        if kind_code == _KINDS[kind] and type_code in types:
            return np.dtype(types[type_code])
    raise ValueError(
        f"{path}: expected the header of a {kind} file by sok.dump with a type among "
        f"{', '.join(np.dtype(code).name for code in types.values())}, found another; name the "
        "folder that sok.dump wrote, or copy it again"
    )


def _only_name(dump: Path) -> str:
    """The name of the only variable in a dump, as it is in the file names."""
    names = sorted(path.name[: -len("-key")] for path in dump.glob("*-key"))
    if len(names) == 1:
        return names[0]
    remedy = "set --names, in table order" if names else "name the folder that sok.dump wrote"
    raise ValueError(
        f"{dump}: expected the two files of one variable, NAME-key and NAME-weight, found "
        f"{', '.join(names) or 'none'}; {remedy}"
    )
