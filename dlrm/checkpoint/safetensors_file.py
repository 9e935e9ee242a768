"""Safetensors files that are written front to back and read by range, each block checked.

A file is 8 bytes with the header's length, the header in JSON, and the tensors' little-endian
values one after the other (https://huggingface.co/docs/safetensors). The library of that name wants
whole tensors; here neither side holds more than a few blocks. What the tensors are for is the
caller's concern.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files

if TYPE_CHECKING:
    from typing_extensions import Self

BLOCK_BYTES = 1 << 20
# Of the first value: the format requires 8, and readers that map a file fetch whole cache lines.
ALIGNMENT = 64

_CODES: dict[np.dtype[Any], str] = {
    np.dtype("<f8"): "F64",
    np.dtype("<f4"): "F32",
    np.dtype("<f2"): "F16",
    np.dtype("<i8"): "I64",
    np.dtype("<i4"): "I32",
    np.dtype("i1"): "I8",
    np.dtype("u1"): "U8",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
Spec = tuple[np.dtype[Any], tuple[int, ...]]  # type and shape


@dataclass(frozen=True)
class FileDigest:
    """The size of a file, and the CRC-32 of each of its blocks in order."""

    size: int
    block_bytes: int
    crc32: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object, the sums as 8 hexadecimal digits each."""
        sums = "".join(f"{value:08x}" for value in self.crc32)
        return {"bytes": self.size, "block_bytes": self.block_bytes, "crc32": sums}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FileDigest:
        """The reverse of `to_json`."""
        text = content["crc32"]
        sums = tuple(int(text[i : i + 8], 16) for i in range(0, len(text), 8))
        return cls(content["bytes"], content["block_bytes"], sums)


class TensorWriter:
    """Writes the tensors of one new file in order, in pieces of any size.

    The sums and the disk are left to a thread, so that the next piece can be made meanwhile; at
    most two pieces are held.

    Args:
        path: The file, which must not exist.
        tensors: Type and shape of each tensor, in the order in which they will be written.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Spec]) -> None:
        self._path = path
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._size = 0
        self._crc, self._crc32 = 0, list[int]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        header = _header(tensors)
        self._expected = len(header) + sum(_bytes(spec) for spec in tensors.values())
        self._append(memoryview(header))

    def __enter__(self) -> TensorWriter:
        """Returns itself; leaving the context closes the file, complete or not."""
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        self._file.close()

    def write(self, values: NDArray[Any]) -> None:
        """Appends values; the array must not change before the next call.

        Raises:
            OSError: This piece or the one before cannot be written; the error names the file.
        """
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        self._wait()
        self._writing = self._thread.submit(self._append, data)

    def finish(self) -> FileDigest:
        """Flushes everything to the disk and returns the digest of the file.

        Raises:
            OSError: The file cannot be written; the error names it.
        """
        self._wait()
        assert self._size == self._expected, f"{self._path}: {self._size} != {self._expected}"
        if self._size % BLOCK_BYTES:
            self._crc32.append(self._crc)
        atomic_files.sync(self._file.fileno(), self._path)
        return FileDigest(self._size, BLOCK_BYTES, tuple(self._crc32))

    def _wait(self) -> None:
        if self._writing:
            self._writing.result()

    def _append(self, view: memoryview) -> None:
        with atomic_files.naming(self._path):
            while view:
                # The rest of a block at a time: still in cache when it is copied to the kernel.
                piece = view[: BLOCK_BYTES - self._size % BLOCK_BYTES]
                piece = piece[: self._file.write(piece)]
                self._crc = zlib.crc32(piece, self._crc)
                self._size += len(piece)
                view = view[len(piece) :]
                if self._size % BLOCK_BYTES == 0:
                    self._crc32.append(self._crc)
                    self._crc = 0


class BlockReader:
    """Reads ranges of the bytes of one file of any kind, checking every block that is touched.

    Args:
        path: The file.
        digest: The digest of the file.

    Raises:
        ValueError: The size is wrong.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path, digest: FileDigest) -> None:
        self._path, self._digest = path, digest
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        try:
            self._begin()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Returns itself; leaving the context closes the file."""
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _begin(self) -> None:
        """Checks what can be checked before any range is read."""
        size = os.fstat(self._file.fileno()).st_size
        if size != self._digest.size:
            raise ValueError(
                f"{self._path}: expected {self._digest.size} bytes, found {size}: it ends at "
                f"offset {size}"
            )

    def read_bytes(self, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the file.

        Raises:
            ValueError: A block is damaged; the message names the file and the offset.
        """
        block = self._digest.block_bytes
        low = start // block * block
        high = min(-(-stop // block) * block, self._digest.size)
        data = np.empty(max(high - low, 0), np.uint8)
        done = 0
        while done < len(data):
            view = data.data[done : done + (1 << 30)]
            with atomic_files.naming(self._path):
                count = os.preadv(self._file.fileno(), [view], low + done)
            if not count:
                raise ValueError(f"{self._path}: ends at offset {low + done} since it was opened")
            done += count
        for offset in range(0, len(data), block):
            number = (low + offset) // block
            if zlib.crc32(data[offset : offset + block].data) != self._digest.crc32[number]:
                end = min(low + offset + block, self._digest.size)
                raise ValueError(
                    f"{self._path}: damaged between offsets {low + offset} and {end}: its CRC-32 "
                    "is not the one that was written"
                )
        return data.data[start - low : stop - low]


class TensorReader(BlockReader):
    """Reads ranges of the tensors of one file, checking every block that is touched.

    Args:
        path: The file.
        digest: The digest of the file.

    Attributes:
        tensors: Type and shape of each tensor, by name.

    Raises:
        ValueError: The size is wrong, or the header is damaged.
        OSError: The file cannot be read.
    """

    def _begin(self) -> None:
        super()._begin()
        (length,) = struct.unpack("<Q", self.read_bytes(0, 8))
        places = parse_header(bytes(self.read_bytes(8, 8 + length)))
        self.tensors: dict[str, Spec] = {name: spec for name, (spec, _) in places.items()}
        self._starts = {name: start for name, (_, start) in places.items()}

    def read(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Rows [first, last) of a tensor, all by default, as a new array.

        Raises:
            ValueError: A block is damaged; the message names the file and the offset.
        """
        dtype, shape = self.tensors[name]
        last = shape[0] if last is None else last
        row = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        start = self._starts[name]
        data = self.read_bytes(start + first * row, start + last * row)
        return np.frombuffer(data, dtype).reshape(last - first, *shape[1:])


def parse_header(text: bytes) -> dict[str, tuple[Spec, int]]:
    """The tensors of a file by name: type and shape of each, and the offset of its first value.

    Args:
        text: The JSON of the header, with its padding.
    """
    begin = 8 + len(text)
    return {
        name: ((_DTYPES[entry["dtype"]], tuple(entry["shape"])), begin + entry["data_offsets"][0])
        for name, entry in json.loads(text).items()
        if name != "__metadata__"
    }


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> FileDigest:
    """Writes small tensors, held in memory, to a new file."""
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    with TensorWriter(path, {name: (a.dtype, a.shape) for name, a in arrays.items()}) as writer:
        for value in arrays.values():
            writer.write(value)
        return writer.finish()


def allocate(path: Path, tensors: Mapping[str, Spec]) -> int:
    """Creates a file whose values can be written in any order; `digest_file` completes it.

    The space is reserved, so that a full disk fails here and does not kill a process that later
    writes through a mapping.

    Returns:
        The offset of the first value.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    header = _header(tensors)
    size = len(header) + sum(_bytes(spec) for spec in tensors.values())
    with atomic_files.naming(path), open(path, "xb") as file:
        file.write(header)
        os.posix_fallocate(file.fileno(), 0, size)
    return len(header)


def digest_file(path: Path) -> FileDigest:
    """Flushes a file to the disk and computes its digest."""
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor() as pool:
        descriptor = file.fileno()
        atomic_files.sync(descriptor, path)
        size = os.fstat(descriptor).st_size

        def crc32_of_block(offset: int) -> int:
            block = os.pread(descriptor, BLOCK_BYTES, offset)
            assert len(block) == min(BLOCK_BYTES, size - offset), path
            return zlib.crc32(block)

        crc32 = tuple(pool.map(crc32_of_block, range(0, size, BLOCK_BYTES)))
    return FileDigest(size, BLOCK_BYTES, crc32)


def _header(tensors: Mapping[str, Spec]) -> bytes:
    """The bytes before the first value: the header's length, and the header, padded."""
    entries, offset = {}, 0
    for name, spec in tensors.items():
        end = offset + _bytes(spec)
        dtype, shape = spec
        entries[name] = {
            "dtype": _CODES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes(spec: Spec) -> int:
    """The number of bytes of a tensor's values."""
    dtype, shape = spec
    return np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
