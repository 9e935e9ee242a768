"""`checksums.json`: the size and CRC-32 of every data file of a folder, read, written, compared.

It is in the folder of the data files that split_bin.py and preprocess write, and is written last.
Files that describe the data, such as metadata.json, are not in it: users may correct those by hand.
This module must not know what the data files hold.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dlrm.formats.file_names import CHECKSUMS, StrPath
from dlrm.formats.json_files import read_json_object, write_json_object

ALGORITHM = "crc32"  # reflected polynomial 0xEDB88320, as zlib, gzip and java.util.zip.CRC32

_PIECE_BYTES = 4 << 20
_POLYNOMIAL = 0xEDB88320
_HEX = re.compile(r"[0-9a-f]{8}")


class FileSum(NamedTuple):
    """The size and checksum of a file.

    Attributes:
        bytes: The size of the file.
        crc32: The CRC-32 of its content, eight hexadecimal digits.
    """

    bytes: int
    crc32: str


class RunningSum:
    """The checksum of a file while it is written, piece by piece."""

    def __init__(self) -> None:
        self._bytes = 0
        self._crc = 0

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Appends a contiguous piece; releases the interpreter lock meanwhile."""
        self._crc = zlib.crc32(piece, self._crc)
        self._bytes += memoryview(piece).nbytes

    @property
    def value(self) -> FileSum:
        """The sum of all pieces so far."""
        return FileSum(self._bytes, f"{self._crc:08x}")


def sum_of(path: StrPath) -> FileSum:
    """The size and CRC-32 of a file, which is read once in pieces.

    Raises:
        OSError: The file cannot be read.
    """
    running = RunningSum()
    buffer = bytearray(_PIECE_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            running.update(view[:count])
    return running.value


def combine(crc_a: int, crc_b: int, bytes_b: int) -> int:
    """The CRC-32 of two pieces joined, from the CRC-32 of each, without reading them again.

    Appending n bytes multiplies a CRC by x^(8n) modulo the polynomial (zlib's `crc32_combine`); the
    power takes one squaring for each bit of n.

    Args:
        crc_a: CRC-32 of the first piece.
        crc_b: CRC-32 of the second piece.
        bytes_b: Size of the second piece.
    """
    factor, square, bits = 1 << 31, 1 << 30, 8 * bytes_b  # x^0 and x^1: the top bit is x^0
    while bits:
        if bits & 1:
            factor = _product(factor, square)
        square = _product(square, square)
        bits >>= 1
    return _product(factor, crc_a) ^ crc_b


def _product(a: int, b: int) -> int:
    """The product of two reflected polynomials over GF(2), modulo the CRC's."""
    product = 0
    for position in range(31, -1, -1):
        if a >> position & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def write_checksums(folder: StrPath, entries: Mapping[str, FileSum]) -> None:
    """Writes `folder/checksums.json`, complete or not at all.

    Args:
        folder: The folder that holds the files.
        entries: The sum of each data file, by its name within the folder.
    """
    write_json_object(Path(folder) / CHECKSUMS, to_json(entries))


def to_json(entries: Mapping[str, FileSum]) -> dict[str, Any]:
    """The content of `checksums.json`.

    Args:
        entries: The sum of each data file, by its name within the folder.
    """
    files = {name: entry._asdict() for name, entry in entries.items()}
    return {"algorithm": ALGORITHM, "files": files}


def remove_checksums(folder: StrPath) -> None:
    """Removes `folder/checksums.json`, if present; to be called before a listed file changes."""
    (Path(folder) / CHECKSUMS).unlink(missing_ok=True)


def read_checksums(folder: StrPath) -> dict[str, FileSum] | None:
    """The content of `folder/checksums.json` by file name, or None if there is none.

    Raises:
        ValueError: The file is malformed.
    """
    path = Path(folder) / CHECKSUMS
    if not path.exists():
        return None
    remedy = "write the folder again, or remove the file if you trust the data"
    content = read_json_object(path, remedy)
    algorithm, files = content.get("algorithm"), content.get("files")
    if algorithm != ALGORITHM:
        raise ValueError(f"{path}: algorithm: expected {ALGORITHM}, found {algorithm!r}; {remedy}")
    if not isinstance(files, dict):
        raise ValueError(f"{path}: files: expected an object by name, found {files!r}; {remedy}")
    return {name: _checked(path, name, entry, remedy) for name, entry in files.items()}


def _checked(path: Path, name: str, entry: object, remedy: str) -> FileSum:
    if Path(name).name != name:
        raise ValueError(f"{path}: expected names of files in its folder, found {name!r}; {remedy}")
    if isinstance(entry, dict) and entry.keys() >= set(FileSum._fields):
        size, crc = entry["bytes"], entry["crc32"]
        if type(size) is int and size >= 0 and isinstance(crc, str) and _HEX.fullmatch(crc):
            return FileSum(size, crc)
    raise ValueError(
        f'{path}: {name}: expected {{"bytes": N, "crc32": eight digits 0-9a-f}}, found {entry!r}; '
        f"{remedy}"
    )
