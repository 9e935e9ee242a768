"""Raw click logs as batches of columns: tab-separated text, plain or gzip, strictly checked.

A line is a label (0 or 1), `num_dense` integers and `num_categorical` hexadecimal numbers of at
most 8 digits; every field but the label may be empty. Lines end in LF or CRLF. It knows nothing
of rules, ids or outputs.
"""

from __future__ import annotations

import gzip
import queue
import re
import threading
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

_INTEGER = re.compile(rb"-?[0-9]+")
_HEX_DIGITS = 8
_HEX = re.compile(rb"[0-9a-fA-F]{1,%d}" % _HEX_DIGITS)
_INT32 = range(-(2**31), 2**31)
_LONGEST_LINE = 1 << 20
_COUNT_BYTES = 1 << 20


@dataclass(frozen=True)
class Block:
    """Whole lines of one file.

    Attributes:
        file: index of the file.
        line: number of the first line, from 1.
        text: the lines, the last of which may lack its line end.
        position: bytes of the stored file read so far.
        lines: number of lines.
        tabs: number of tab characters.
    """

    file: int
    line: int
    text: bytes
    position: int
    lines: int
    tabs: int


@dataclass(frozen=True)
class Batch:
    """Parsed rows, one array a column; missing values read 0.

    Attributes:
        labels: int32 [rows].
        dense: num_dense arrays, int32 [rows].
        categories: num_categorical arrays, uint32 [rows].
        missing: for each category bool [rows], or None where no value is missing.
    """

    labels: NDArray[np.int32]
    dense: list[NDArray[np.int32]]
    categories: list[NDArray[np.uint32]]
    missing: list[NDArray[np.bool_] | None]


def read_blocks(paths: Sequence[Path], block_bytes: int) -> Generator[Block, None, None]:
    """Blocks of all files in order, read and decompressed ahead in a thread.

    Args:
        paths: logs; those ending in `.gz` are decompressed.
        block_bytes: text aimed at in each block.

    Raises:
        ValueError: naming file and line if a line is longer than a megabyte or a gzip file is
            damaged.
        OSError: if a file cannot be read.
    """
    ready: queue.Queue[Block | BaseException | None] = queue.Queue(maxsize=2)
    stopped = threading.Event()

    def put(item: Block | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for index, path in enumerate(paths):
                for block in _file_blocks(index, path, block_bytes):
                    if not put(block):
                        return
            put(None)
        except Exception as error:  # noqa: BLE001 - raised again by the consumer
            put(error)

    thread = threading.Thread(target=produce, name="log reader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def _file_blocks(index: int, path: Path, block_bytes: int) -> Iterator[Block]:
    line = 1
    with open(path, "rb", buffering=0) as raw:
        source: gzip.GzipFile | FileIO = gzip.open(raw) if path.suffix == ".gz" else raw  # noqa: SIM115
        rest = b""
        while True:
            try:
                data = source.read(block_bytes)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(
                    f"{path}: expected a whole gzip file, found damage after line {line - 1}"
                    f" ({error}); fetch the file again"
                ) from error
            cut = data.rfind(b"\n") + 1 if data else 0
            if data and not cut:
                rest += data
                if len(rest) > _LONGEST_LINE:
                    raise ValueError(
                        f"{path}, line {line}: expected a line of text, found more than"
                        f" {_LONGEST_LINE} bytes without a line end; is this a click log?"
                    )
                continue
            text = rest + data[:cut] if data else rest
            rest = data[cut:]
            if text:
                lines = _count(text, ord("\n")) + (not text.endswith(b"\n"))
                tabs = _count(text, ord("\t"))
                yield Block(index, line, text, raw.tell(), lines, tabs)
                line += lines
            if not data:
                return


def _count(text: bytes, byte: int) -> int:
    array = np.frombuffer(text, np.uint8)
    # Piecewise, so that the comparison's result stays in the cache.
    return sum(
        int(np.count_nonzero(array[start : start + _COUNT_BYTES] == byte))
        for start in range(0, len(array), _COUNT_BYTES)
    )


class Parser:
    """Turns blocks into batches.

    Args:
        paths: the files, for messages.
        num_dense: integer columns.
        num_categorical: hexadecimal columns.
    """

    def __init__(self, paths: Sequence[Path], num_dense: int, num_categorical: int) -> None:
        self._paths = list(paths)
        self._num_dense = num_dense
        self._integers = [f"integer_{column}" for column in range(1 + num_dense)]
        self._hashes = [f"hash_{column}" for column in range(num_categorical)]
        self._schema = pl.Schema(
            [(name, pl.Int32()) for name in self._integers]
            + [(name, pl.String()) for name in self._hashes]
        )

    def parse(self, block: Block) -> Batch:
        """Parses a block.

        Raises:
            ValueError: naming file and line of the first bad row.
        """
        # What Polars would let pass although it is not a number as this format has them.
        doubtful = b"+" in block.text or b" " in block.text
        try:
            frame = pl.read_csv(
                block.text,
                separator="\t",
                has_header=False,
                schema=self._schema,
                quote_char=None,
            )
            hashes = pl.col(self._hashes)
            numbers = frame.select(
                pl.col(self._integers[0]),
                pl.col(self._integers[1:]).fill_null(0),
                hashes.str.to_integer(base=16, dtype=pl.UInt32),
            )
            longest = frame.select(hashes.str.len_bytes().max()).row(0)
        except pl.exceptions.PolarsError:
            raise self._first_bad_row(block) from None
        # Short lines are padded in silence, so the tabs are counted; long ones are an error above.
        whole = frame.height == block.lines and block.tabs == block.lines * (frame.width - 1)
        labels = numbers[self._integers[0]]
        labelled = labels.null_count() == 0 and labels.is_between(0, 1).all()
        if not whole or not labelled or any((n or 0) > _HEX_DIGITS for n in longest):
            raise self._first_bad_row(block)
        if doubtful:
            self._check(block)
        missing = [
            frame[name].is_null().to_numpy() if frame[name].null_count() else None
            for name in self._hashes
        ]
        filled = numbers.select(pl.col(self._hashes).fill_null(0))
        return Batch(
            labels.to_numpy(),
            [numbers[name].to_numpy() for name in self._integers[1:]],
            [filled[name].to_numpy() for name in self._hashes],
            missing,
        )

    def _first_bad_row(self, block: Block) -> ValueError:
        """The error of the first bad row of a block known to have one."""
        try:
            self._check(block)
        except ValueError as error:
            return error
        path = self._paths[block.file]
        last = block.line + block.lines - 1
        return ValueError(f"{path}, lines {block.line} to {last}: not a readable click log")

    def _check(self, block: Block) -> None:
        """Goes through a block row by row; slow, for messages only.

        Raises:
            ValueError: naming file and line of the first bad row.
        """
        lines = block.text.split(b"\n")[: block.lines]
        for number, line in enumerate(lines, block.line):
            fault = self._fault(line.removesuffix(b"\r").split(b"\t"))
            if fault:
                raise ValueError(f"{self._paths[block.file]}, line {number}: {fault}")

    def _fault(self, fields: list[bytes]) -> str | None:
        expected = len(self._schema)
        if len(fields) != expected:
            return f"expected {expected} tab-separated fields, found {len(fields)}"
        label = fields[0]
        if not _INTEGER.fullmatch(label) or len(label) > 20 or int(label) not in (0, 1):
            return f"label: expected 0 or 1, found {_shown(label)}"
        for column, field in enumerate(fields[1 : 1 + self._num_dense], 1):
            if field and not _INTEGER.fullmatch(field):
                return f"dense column {column}: expected an integer, found {_shown(field)}"
            if field and (len(field) > 20 or int(field) not in _INT32):
                return f"dense column {column}: expected a 32-bit integer, found {_shown(field)}"
        for column, field in enumerate(fields[1 + self._num_dense :], 1):
            if field and not _HEX.fullmatch(field):
                return (
                    f"categorical column {column}: expected at most 8 hexadecimal digits,"
                    f" found {_shown(field)}"
                )
        return None


def _shown(field: bytes) -> str:
    text = field.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 40 else text[:40] + "...")
