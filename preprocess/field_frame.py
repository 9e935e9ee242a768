"""Cuts lines into the fields of a log's columns with Polars, and says which lines are good rows.

This is also how Spark's bad lines are described, on the driver. It must not know about ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from preprocess.columns import LogColumns
from preprocess.dialect import Check
from preprocess.polars_dialect import DIALECT
from preprocess.row_expressions import checks
from preprocess.text_patterns import field_pattern, json_path, line_pattern

_ROW = "row"
_SHOWN = 40


class FieldFrames:
    """Makes the fields of lines.

    Args:
        log: The columns.
    """

    def __init__(self, log: LogColumns) -> None:
        self._log = log
        self._names = [f"field_{i}" for i in range(len(log.names))]
        self.fields = {name: pl.col(field) for name, field in zip(log.names, self._names)}
        """The expression of each column's text, by the name of the column."""
        self._checks = checks(DIALECT, log, self.fields)

    def read(self, raw: list[bytes]) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
        """Returns the fields of all lines as texts, and which lines are good rows, bool [lines]."""
        lines, decoded = _series_of(raw)
        frame = self._cut(lines)
        whole = frame.select(pl.all_horizontal(pl.all().is_not_null())).to_series()
        frame = frame.select(self._cleaned(name) for name in self._names)
        good = frame.select(_all(self._checks)).to_series()
        return frame, (decoded & whole & good).to_numpy()

    def faults(self, raw: list[bytes]) -> list[str]:
        """Describes what is wrong with each of some bad lines."""
        return [self._fault(line) for line in raw]

    def _fault(self, raw: bytes) -> str:
        log = self._log
        lines, decoded = _series_of([raw])
        if not decoded[0]:
            return f"expected UTF-8 text, found {_shown(raw)}; convert the file to UTF-8"
        frame = self._cut(lines)
        if any(series[0] is None for series in frame):
            return self._shape_fault(raw)
        frame = frame.select(self._cleaned(name) for name in self._names)
        for check in self._checks:
            if not frame.select(check.good.fill_null(False)).item():
                text = frame[self._names[log.names.index(check.column)]][0]
                return f"{check.where}: expected {check.expected}, found {_shown(text.encode())}"
        return f"expected a row of the schema, found {_shown(raw)}"

    def _shape_fault(self, raw: bytes) -> str:
        log = self._log
        if log.format == "jsonl":
            return f"expected a JSON object, found {_shown(raw)}; write one object on each line"
        if log.quoted and raw.count(b'"'):
            frame = pl.DataFrame({_ROW: [raw.decode()]})
            loose = line_pattern(log.delimiter, None)
            if not frame.select(pl.col(_ROW).str.contains(loose)).item():
                return (
                    "expected quotes around whole fields that end on their line, found"
                    f" {_shown(raw)}; keep each row on one line, write a quote in a field twice, or"
                    " say quoted: false"
                )
        found = len(self._pieces(pl.Series(_ROW, [raw.decode()])).item())
        name = {"\t": "tab", ",": "comma"}.get(log.delimiter, repr(log.delimiter))
        return (
            f"expected {len(log.names)} {name}-separated fields, found {found}; correct the line,"
            " or the schema's columns and delimiter"
        )

    def _cut(self, lines: pl.Series) -> pl.DataFrame:
        """Returns the fields of all lines; all are null in a line of another shape."""
        log = self._log
        column = lines.rename(_ROW).to_frame()
        if log.format == "jsonl":
            row = pl.col(_ROW)
            is_object = row.str.json_path_match("$").str.starts_with("{").fill_null(False)
            return column.select(
                pl.when(is_object)
                .then(row.str.json_path_match(json_path(name)).fill_null(""))
                .alias(field)
                for name, field in zip(log.names, self._names)
            )
        pieces, row = self._pieces(lines).rename(_ROW).to_frame(), pl.col(_ROW)
        whole = row.list.len() == len(self._names)
        return pieces.select(
            pl.when(whole).then(row.list.get(i, null_on_oob=True)).alias(field)
            for i, field in enumerate(self._names)
        )

    def _pieces(self, lines: pl.Series) -> pl.Series:
        """Returns the list of fields of each line, with their quotes; empty if these are wrong."""
        log = self._log
        frame = lines.rename(_ROW).to_frame()
        row = pl.col(_ROW)
        if not log.quoted or not lines.str.contains('"', literal=True).any():
            return frame.select(row.str.split(log.delimiter)).to_series()
        # With a delimiter before it, no match of a field is empty.
        fields = (
            (pl.lit(log.delimiter) + row)
            .str.extract_all(field_pattern(log.delimiter))
            .list.eval(pl.element().str.slice(1))
        )
        good = row.str.contains(line_pattern(log.delimiter, None))
        none = pl.lit([], pl.List(pl.String))
        return frame.select(pl.when(good).then(fields).otherwise(none)).to_series()

    def _cleaned(self, name: str) -> pl.Expr:
        """Returns a field without quotes and blanks, and "" where it stands for no value."""
        log, text = self._log, pl.col(name)
        if log.quoted:
            bare = text.str.strip_chars(" \t")
            inner = bare.str.slice(1, bare.str.len_chars() - 2)
            inner = inner.str.replace_all('""', '"', literal=True)
            text = pl.when(bare.str.starts_with('"')).then(inner).otherwise(text)
        if log.trim:
            text = DIALECT.trimmed(text)
        if log.absent:
            text = pl.when(text.is_in(list(log.absent))).then(pl.lit("")).otherwise(text)
        return text.alias(name)


def _all(conditions: Sequence[Check]) -> pl.Expr:
    return pl.all_horizontal([check.good.fill_null(False) for check in conditions]).alias("good")


def decode_lines(raw: list[bytes]) -> tuple[list[str], list[bool]]:
    """Decodes lines; returns their texts, empty for those that are not UTF-8, and which are."""
    try:
        return b"\n".join(raw).decode().split("\n") if raw else [], [True] * len(raw)
    except UnicodeDecodeError:
        texts, good = [], []
        for line in raw:
            try:
                texts.append(line.decode())
                good.append(True)
            except UnicodeDecodeError:
                texts.append("")
                good.append(False)
        return texts, good


def _series_of(raw: list[bytes]) -> tuple[pl.Series, pl.Series]:
    texts, good = decode_lines(raw)
    return pl.Series("line", texts, pl.String), pl.Series("good", good, pl.Boolean)


def _shown(field: bytes) -> str:
    text = field.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
