"""Reads raw logs as blocks of whole lines: plain text, gzip, or Parquet converted to text.

Reading can begin wherever an earlier block ended. This module must not know about what a line holds
beyond its line end: LF or CRLF.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import polars as pl
from isal import igzip, igzip_lib

from preprocess.columns import BYTE_ORDER_MARK, UNIT_SEPARATOR, LogColumns, list_fault
from preprocess.schema import Schema

_LINE_END = ord("\n")
_LONGEST_LINE = 1 << 20
_COUNT_BYTES = 1 << 20
_SKIP_BYTES = 1 << 20
_PARQUET_ROWS = 1 << 16


@dataclass(frozen=True)
class ResumePoint:
    """The position at which reading begins.

    Attributes:
        file: The index of the file.
        line: The number of the next line, from 1.
        offset: Bytes of text before that line, after decompression; in Parquet files, rows.
    """

    file: int = 0
    line: int = 1
    offset: int = 0


@dataclass(frozen=True)
class TextBlock:
    """Whole lines of one file.

    Attributes:
        file: The index of the file.
        line: The number of the first line, from 1.
        text: The lines, the last of which may lack its line end.
        position: Bytes of the stored file that have been read so far.
        lines: The number of lines.
        offset: The offset of the `ResumePoint` after this block.
    """

    file: int
    line: int
    text: bytes
    position: int
    lines: int
    offset: int

    @property
    def end(self) -> ResumePoint:
        """The position at which the next block of this file begins."""
        return ResumePoint(self.file, self.line + self.lines, self.offset)


def read_blocks(
    paths: Sequence[Path], schema: Schema, block_bytes: int, start: ResumePoint | None = None
) -> Generator[TextBlock, None, None]:
    """Yields the blocks of all files in order; a thread reads and decompresses ahead.

    Args:
        paths: The logs; those ending in `.gz` are decompressed.
        schema: The format, and whether the first line is a header.
        block_bytes: The approximate number of bytes of text in a block.
        start: The position at which to begin; None is the beginning of the first file.

    Raises:
        ValueError: A line is longer than a megabyte or a gzip file is damaged; the message names
            file and line.
        OSError: A file cannot be read.
    """
    first = start or ResumePoint()
    layout = schema.columns or schema
    ready: queue.Queue[TextBlock | BaseException | None] = queue.Queue(maxsize=2)
    stopped = threading.Event()

    def put(item: TextBlock | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for index in range(first.file, len(paths)):
                resume_point = first if index == first.file else ResumePoint(index)
                blocks = _parquet_blocks if layout.format == "parquet" else _text_blocks
                for block in blocks(paths[index], layout, block_bytes, resume_point):
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


def _text_blocks(
    path: Path, schema: Schema | LogColumns, block_bytes: int, start: ResumePoint
) -> Iterator[TextBlock]:
    """Yields the blocks of a text file.

    A header is checked and counted as a line, but is in no block.
    """
    line, offset = start.line, start.offset
    with open(path, "rb", buffering=0) as raw:
        source: igzip.IGzipFile | FileIO = igzip.open(raw) if path.suffix == ".gz" else raw  # noqa: SIM115
        rest = b""
        header = schema.header and line == 1
        try:
            _skip(source, offset)
            while True:
                data = source.read(block_bytes)
                cut = data.rfind(b"\n") + 1 if data else 0
                if data and not cut:
                    rest += data
                    if len(rest) > _LONGEST_LINE:
                        raise ValueError(
                            f"{path}, line {line}: expected a line of text, found more than"
                            f" {_LONGEST_LINE} bytes without a line end; is this a click log?"
                        )
                    continue
                text = b"".join((rest, memoryview(data)[:cut])) if data else rest
                rest = data[cut:]
                if isinstance(schema, LogColumns):
                    if offset == 0:
                        offset = len(BYTE_ORDER_MARK) * text.startswith(BYTE_ORDER_MARK)
                        text = text[offset:]
                    # Empty lines at the end of a file are no rows; others come with the next block.
                    full = _without_empty_end(text)
                    text, rest = text[:full], text[full:] + rest
                if header and text:
                    names, _, remainder = text.partition(b"\n")
                    _check_header(path, schema, names)
                    offset += len(text) - len(remainder)
                    text, line, header = remainder, 2, False
                if text:
                    lines = _line_ends(text) + (not text.endswith(b"\n"))
                    offset += len(text)
                    yield TextBlock(start.file, line, text, raw.tell(), lines, offset)
                    line += lines
                if not data:
                    return
        # The types that isal declares lack the base class of its error.
        except (igzip.BadGzipFile, EOFError, igzip_lib.IsalError) as error:  # type: ignore[misc]
            raise ValueError(
                f"{path}: expected a whole gzip file, found damage after line {line - 1}"
                f" ({error}); fetch the file again"
            ) from error


def _skip(source: igzip.IGzipFile | FileIO, offset: int) -> None:
    if isinstance(source, FileIO):
        source.seek(offset)
        return
    while offset:
        data = source.read(min(offset, _SKIP_BYTES))
        if not data:
            raise EOFError("the text ends before the position to continue from")
        offset -= len(data)


def _check_header(path: Path, schema: Schema | LogColumns, line: bytes) -> None:
    fault = schema.header_fault(line.removesuffix(b"\r"))
    if fault:
        raise ValueError(f"{path}, line 1: {fault}; correct the schema's columns")


def _parquet_blocks(
    path: Path, schema: Schema | LogColumns, block_bytes: int, start: ResumePoint
) -> Iterator[TextBlock]:
    """Yields the blocks of a Parquet file; its rows become lines, and nulls become empty fields."""
    try:
        types = pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: expected a Parquet file, found {error}") from None
    absent = [name for name in schema.names if name not in types]
    if absent:
        raise ValueError(
            f"{path}: expected columns {', '.join(absent)}, found none of these names; correct the"
            " schema's columns"
        )
    lists = schema.list_columns if isinstance(schema, LogColumns) else ()
    for name in schema.names:
        _check_type(path, name, types[name], name in lists)
    columns = [_parquet_text(name, name in lists) for name in schema.names]
    log = pl.scan_parquet(path)
    total = int(log.select(pl.len()).collect().item())
    size = path.stat().st_size
    rows = max(1, min(_PARQUET_ROWS, block_bytes // (8 * len(columns))))
    for first in range(start.offset, total, rows):
        frame = log.slice(first, rows).select(columns).collect()
        if len(columns) == 1:
            frame = frame.with_columns(pl.all().fill_null(""))
        text = frame.write_csv(
            separator="\t", include_header=False, quote_style="never", null_value=""
        ).encode()
        stop = first + frame.height
        yield TextBlock(start.file, first + 1, text, size * stop // total, frame.height, stop)


def _check_type(path: Path, name: str, found: pl.DataType, is_list: bool) -> None:
    """Refuses a column of a Parquet file that cannot become text."""
    inner = found.inner if isinstance(found, pl.List) else None
    fault = list_fault(inner is not None, is_list, inner is not None and inner.is_nested())
    if fault:
        raise ValueError(f"{path}: column {name}: {fault}")


def _parquet_text(name: str, is_list: bool) -> pl.Expr:
    """Returns a column of a Parquet file as text, in which nothing ends a field or a line."""
    column = pl.col(name)
    if not is_list:
        return column.cast(pl.String).str.replace_all(r"[\t\r\n]", " ")
    item = pl.element().fill_null("").str.replace_all(rf"[\t\r\n{UNIT_SEPARATOR}]", " ")
    return column.cast(pl.List(pl.String)).list.eval(item).list.join(UNIT_SEPARATOR)


def _without_empty_end(text: bytes) -> int:
    """Returns the number of bytes without the empty lines at the end."""
    if not text.endswith((b"\n\n", b"\n\r\n")) and text not in (b"\n", b"\r\n"):
        return len(text)
    full = len(text.rstrip(b"\r\n"))
    return text.find(b"\n", full) + 1 if full else 0


def _line_ends(text: bytes) -> int:
    array = np.frombuffer(text, np.uint8)
    # In pieces, so that the result of the comparison stays in the cache.
    return sum(
        int(np.count_nonzero(array[start : start + _COUNT_BYTES] == _LINE_END))
        for start in range(0, len(array), _COUNT_BYTES)
    )
