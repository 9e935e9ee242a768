"""One open column file: rows of fixed width, read by number, from several threads at once.

What the values mean is the caller's concern.
"""

from __future__ import annotations

import os
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SAMPLED_BYTES, _SAMPLED_BLOCKS = 1 << 14, 512

REMEDY = "write the folder again with split_bin.py"


class ColumnFile:
    """An open file of little-endian values, `width` of them in a row.

    It reads by offset and never maps the file, so that a file that is cut during the run causes an
    error message and not a SIGBUS.

    Args:
        path: The file.
        dtype: NumPy name of the stored type.
        width: Number of values in a row.
        rows: Number of rows that the file must hold. None accepts any number from one.
        counted: What a row is and where their number comes from, for messages.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The size is not that of `rows` rows.
    """

    def __init__(
        self,
        path: Path,
        dtype: str,
        width: int,
        rows: int | None = None,
        *,
        counted: str = "samples (label.bin's)",
    ) -> None:
        self.path = path
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.width = width
        self.row_bytes = width * self.dtype.itemsize
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file; {REMEDY}") from None
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if rows is None:
            self.rows, rest = divmod(size, self.row_bytes)
            if rest or not self.rows:
                raise ValueError(
                    f"{path}: expected whole rows of {self.row_bytes} bytes, at least one, found "
                    f"{size} bytes; {REMEDY}"
                )
        else:
            self.rows = rows
            if size != rows * self.row_bytes:
                raise ValueError(
                    f"{path}: expected {rows} {counted} of {self.row_bytes} bytes = "
                    f"{rows * self.row_bytes} bytes, found {size} bytes; {REMEDY}"
                )

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Fills `out` with the rows from `start` on.

        Args:
            start: Number of the first row.
            out: C-contiguous array of the file's type, [rows] or [rows, width].

        Raises:
            ValueError: The file ends too early: it was cut after it had been opened.
        """
        view = out.reshape(-1).view(np.uint8).data
        offset = start * self.row_bytes
        done = 0
        while done < len(view):
            # The kernel may return less, at most 2 GiB at a time.
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if count == 0:
                raise ValueError(
                    f"{self.path}: expected {self.rows * self.row_bytes} bytes as when it was "
                    f"opened, found its end at byte {offset + done}; {REMEDY}"
                )
            done += count

    @property
    def fingerprint(self) -> str:
        """Type, size and a CRC-32 of the content: whole, or of evenly spread blocks of it.

        It misses a byte that changed between the blocks, but not other data, another order of the
        samples or another length.
        """
        size = self.rows * self.row_bytes
        blocks = min(-(-size // _SAMPLED_BYTES), _SAMPLED_BLOCKS)
        crc = 0
        for block in range(blocks):
            # The first block is the file's first, the last one its last.
            offset = block * max(size - _SAMPLED_BYTES, 0) // max(blocks - 1, 1)
            crc = zlib.crc32(os.pread(self._descriptor, _SAMPLED_BYTES, offset), crc)
        return f"{self.path.name}:{self.dtype.str}[{self.width}]:{size}:{crc:08x}"

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) as a fresh array of the file's type, [rows, width]."""
        out = np.empty((stop - start, self.width), self.dtype)
        self.read_into(start, out)
        return out


def check_range(start: int, stop: int, num_samples: int) -> None:
    """Raises `IndexError` unless [start, stop) lies within the samples."""
    if not 0 <= start <= stop <= num_samples:
        raise IndexError(f"expected samples within [0, {num_samples}), found [{start}, {stop})")
