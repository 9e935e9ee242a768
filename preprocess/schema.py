"""The fields of a raw log: their order, their roles, and which lines are good rows.

`Schema.line_pattern` and the ranges named there decide whether a row is good, whichever engine
reads it; `Schema.fault` describes what is wrong with a bad one. This module must not know about ids
or engines.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preprocess.columns import LogColumns

LABEL, DENSE, CATEGORICAL, SPLIT, IGNORED = "label", "dense", "categorical", "split", "ignored"
INTEGER, HEX, TEXT, FLOAT = "integer", "hex", "text", "float"
FORMATS = {"tsv": "\t", "csv": ",", "parquet": "\t"}
"""The delimiter of each format; Parquet rows are converted to tab-separated text."""

_INT32 = range(-(2**31), 2**31)
_UINT32 = range(2**32)
_LONGEST_NUMBER = 10  # digits of a 32-bit number without leading zeros


@dataclass(frozen=True)
class LogField:
    """One field of a row.

    Attributes:
        name: Its name in error messages, headers and Parquet files; "" if the log names none.
        role: One of "label", "dense", "categorical", "split" (its text decides the split of the
            row) and "ignored".
        kind: One of "integer", "hex" (at most 8 digits), "text" (its number is its CRC-32) and, in
            the rows made of a log with `columns`, "float".
    """

    name: str
    role: str
    kind: str


@dataclass(frozen=True)
class Schema:
    """The fields of a log.

    Attributes:
        fields: The fields in the order of the file.
        dense: The positions in `fields` of the dense columns, in the order of the record.
        categorical: The positions in `fields` of the categorical columns, in that order.
        format: One of "tsv", "csv" and "parquet".
        header: Whether the first line of each file names the columns.
        columns: How the rows are made of a log of any kind; None if they are its lines.
    """

    fields: tuple[LogField, ...]
    dense: tuple[int, ...]
    categorical: tuple[int, ...]
    format: str = "tsv"
    header: bool = False
    columns: LogColumns | None = None

    @property
    def delimiter(self) -> str:
        """The character that separates the fields of a line."""
        return FORMATS[self.format]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fields, in the order of the file."""
        return tuple(field.name for field in self.fields)

    @property
    def label(self) -> int:
        """Position of the label in `fields`."""
        return next(i for i, field in enumerate(self.fields) if field.role == LABEL)

    @property
    def split(self) -> int | None:
        """Position of the field that decides the split of a row, or None without one."""
        return next((i for i, field in enumerate(self.fields) if field.role == SPLIT), None)

    @property
    def numeric(self) -> bool:
        """Whether every field is a number, so that Polars' CSV reader can be used."""
        return all(
            field.role in (LABEL, DENSE) or (field.role == CATEGORICAL and field.kind == HEX)
            for field in self.fields
        )

    def line_pattern(self) -> str:
        r"""Returns a regular expression that matches good lines as a whole, without line end.

        It uses only what the regular expressions of Java and Rust have in common. In addition, a
        good row is UTF-8, its dense values fit int32 and its integer categories uint32.
        """
        delimiter = re.escape(self.delimiter) if self.delimiter != "\t" else r"\t"
        patterns = (_pattern(field, delimiter, self.format) for field in self.fields)
        return rf"\A{delimiter.join(patterns)}\z"

    def header_fault(self, line: bytes) -> str | None:
        """Describes what is wrong with a header, without its line end; None if it is good."""
        found = line.decode("utf-8", "backslashreplace")
        expected = self.delimiter.join(self.names)
        if found == expected:
            return None
        return f"expected the header {expected!r}, found {found[:200]!r}"

    def fault(self, line: bytes) -> str | None:
        """Describes what is wrong with a line, without its line end; None if it is good."""
        fields = line.split(self.delimiter.encode())
        if len(fields) != len(self.fields):
            kind = "tab" if self.delimiter == "\t" else "comma"
            return f"expected {len(self.fields)} {kind}-separated fields, found {len(fields)}"
        order = [self.label, *self.dense, *self.categorical]
        order += [i for i in range(len(fields)) if i not in order]
        for position in order:
            fault = self._field_fault(position, fields[position])
            if fault:
                return fault
        return None

    def _field_fault(self, position: int, text: bytes) -> str | None:
        """Describes what is wrong with one field, or returns None."""
        field = self.fields[position]
        if field.role == LABEL:
            good = re.fullmatch(rb"-?0+|0*1", text)
            return None if good else f"label: expected 0 or 1, found {_shown(text)}"
        where = self._where(position)
        if field.kind == TEXT:
            if self.format == "csv" and text.startswith(b'"'):
                return f"{where}: expected an unquoted field, found {_shown(text)}"
            try:
                text.decode()
            except UnicodeDecodeError:
                return f"{where}: expected UTF-8 text, found {_shown(text)}"
            return None
        if not text:
            return None
        if field.kind == HEX:
            good = re.fullmatch(rb"[0-9a-fA-F]{1,8}", text)
            expected = "at most 8 hexadecimal digits"
            return None if good else f"{where}: expected {expected}, found {_shown(text)}"
        if not re.fullmatch(rb"-?[0-9]+" if field.role == DENSE else rb"[0-9]+", text):
            remedy = "; for floats, start with python3 -m preprocess.guess"
            return f"{where}: expected an integer, found {_shown(text)}{remedy * (b'.' in text)}"
        limits = _INT32 if field.role == DENSE else _UINT32
        if len(text.lstrip(b"-0")) > _LONGEST_NUMBER or int(text) not in limits:
            return f"{where}: expected a 32-bit integer, found {_shown(text)}"
        return None

    def _where(self, position: int) -> str:
        """Names a field in messages; without a name, by its position in the line and the record.

        Fields of a line count from 1 as in `cut -f`, columns of a record from 0 as in the messages
        of split_bin.py and the loader.
        """
        field = self.fields[position]
        if field.name:
            return f"column {field.name}"
        where = f"field {position + 1}"
        columns = self.dense if field.role == DENSE else self.categorical
        if position in columns:  # otherwise ignored, or the field that decides the split
            where += f" ({field.role} column {columns.index(position)})"
        return where


def _pattern(field: LogField, delimiter: str, log_format: str) -> str:
    """Returns the regular expression of one field."""
    if field.role == LABEL:
        return "(?:-?0+|0*1)"
    if field.kind == HEX:
        return "[0-9a-fA-F]{0,8}"
    if field.kind == INTEGER:
        return "(?:-?[0-9]+)?" if field.role == DENSE else "[0-9]*"
    if log_format == "csv":
        return f'(?:[^"{delimiter}][^{delimiter}]*)?'
    return f"[^{delimiter}]*"


def criteo_schema(num_dense: int, num_categorical: int) -> Schema:
    """Returns Criteo's schema: a label, integers and hashes; tab-separated, without names.

    Raises:
        ValueError: A number of columns is out of range.
    """
    if num_dense < 0 or num_categorical < 1:
        raise ValueError(
            "--num_dense and --num_categorical: expected at least 0 and 1, found"
            f" {num_dense} and {num_categorical}"
        )
    fields = (
        LogField("", LABEL, INTEGER),
        *[LogField("", DENSE, INTEGER)] * num_dense,
        *[LogField("", CATEGORICAL, HEX)] * num_categorical,
    )
    first = 1 + num_dense
    return Schema(fields, tuple(range(1, first)), tuple(range(first, len(fields))))


def text_hash(texts: Sequence[str]) -> list[int]:
    """Returns the number of each text: the CRC-32 of its UTF-8 bytes."""
    return [zlib.crc32(text.encode()) for text in texts]


def _shown(field: bytes) -> str:
    text = field.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 40 else text[:40] + "...")
