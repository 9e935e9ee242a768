"""Parses blocks of text into columns of numbers, with strict checks.

If all fields are numbers, Polars' CSV reader parses a block. If that leaves any doubt, or if there
are other fields, each line is matched with the schema's pattern. This module must not know about
ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlrm.formats.zip_strict import zip_strict
from preprocess.bad_rows import NAMED, BadRows
from preprocess.engine_polars.blocks import TextBlock
from preprocess.schema import DENSE, HEX, TEXT, Schema, text_hash

_HEX_DIGITS = 8


@dataclass(frozen=True)
class ParsedRows:
    """Parsed rows, with one array for each column; missing values are 0.

    Attributes:
        file: The index of the file.
        labels: The labels, int32 [rows].
        dense: The dense columns, num_dense arrays of int32 [rows].
        categories: The categorical columns, num_categorical arrays of uint32 [rows].
        missing: For each categorical column, bool [rows], or None if no value is missing.
        tags: The tag of each row's split, int32 [rows], or None without a split field.
    """

    file: int
    labels: NDArray[np.int32]
    dense: list[NDArray[np.int32]]
    categories: list[NDArray[np.uint32]]
    missing: list[NDArray[np.bool_] | None]
    tags: NDArray[np.int32] | None = None


class LogParser:
    """Parses blocks of text.

    Args:
        paths: The files, for error messages.
        schema: The fields of a row.
        bad_rows: Counts the bad rows.
        tags: The tag of each text of the split field that is not for training.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        schema: Schema,
        bad_rows: BadRows,
        tags: Mapping[str, int] | None = None,
    ) -> None:
        self._paths = list(paths)
        self._schema = schema
        self._bad_rows = bad_rows
        self._tags = dict(tags or {})
        self._pattern = schema.line_pattern()
        self._names = [f"field_{i}" for i in range(len(schema.fields))]
        self._label = self._names[schema.label]
        self._dense = [self._names[i] for i in schema.dense]
        self._categories = [self._names[i] for i in schema.categorical]
        self._numbers = pl.Schema([
            (name, pl.String() if name in self._categories else pl.Int32())
            for name in self._names
        ])  # fmt: skip

    def parse(self, block: TextBlock) -> ParsedRows:
        """Returns the good rows of a block.

        Raises:
            ValueError: There are too many bad rows; the message names file and line of the first.
        """
        # Polars would accept "+5" and " 5".
        if self._schema.numeric and b"+" not in block.text and b" " not in block.text:
            batch = self._read_numbers(block)
            if batch:
                return batch
        return self._read_lines(block)

    def _read_numbers(self, block: TextBlock) -> ParsedRows | None:
        """Parses a block with Polars' CSV reader; returns None if any row may be bad."""
        try:
            frame = pl.read_csv(
                block.text,
                separator=self._schema.delimiter,
                has_header=False,
                schema=self._numbers,
                quote_char=None,
            )
            hashes = pl.col(self._categories)
            numbers = frame.select(
                pl.col(self._label),
                pl.col(self._dense).fill_null(0),
                hashes.str.to_integer(base=16, dtype=pl.UInt32),
            )
            longest = frame.select(hashes.str.len_bytes().max()).row(0)
        except pl.exceptions.PolarsError:
            return None
        # Polars pads short lines silently, so delimiters are counted; long lines are errors above.
        expected = block.lines * (frame.width - 1)
        labels = numbers[self._label]
        if (
            frame.height != block.lines
            or block.delimiters != expected
            or labels.null_count()
            or not labels.is_between(0, 1).all()
            or any((n or 0) > _HEX_DIGITS for n in longest)
        ):
            return None
        missing = [
            frame[name].is_null().to_numpy() if frame[name].null_count() else None
            for name in self._categories
        ]
        filled = numbers.select(pl.col(self._categories).fill_null(0))
        return ParsedRows(
            block.file,
            labels.to_numpy(),
            [numbers[name].to_numpy() for name in self._dense],
            [filled[name].to_numpy() for name in self._categories],
            missing,
        )

    def _read_lines(self, block: TextBlock) -> ParsedRows:
        """Parses a block line by line, and counts its bad rows."""
        raw = block.text.split(b"\n")[: block.lines]
        raw = [line.removesuffix(b"\r") for line in raw]
        frame, good = self._fields(raw)
        bad = np.flatnonzero(~good)
        if bad.size:
            path = self._paths[block.file]
            named = [
                f"{path}, line {block.line + row}: {self._schema.fault(raw[row])}"
                for row in bad[:NAMED].tolist()
            ]
            self._bad_rows.add(len(bad), named)
            frame = frame.filter(pl.Series(good))
        tags = None
        if self._schema.split is not None:
            texts = frame[self._names[self._schema.split]]
            tags = texts.replace_strict(self._tags, default=0, return_dtype=pl.Int32).to_numpy()
        categories = [frame[name] for name in self._categories]
        absent = [series.is_null() for series in categories]
        return ParsedRows(
            block.file,
            frame[self._label].to_numpy(),
            [frame[name].fill_null(0).to_numpy() for name in self._dense],
            [series.fill_null(0).to_numpy() for series in categories],
            [series.to_numpy() if series.any() else None for series in absent],
            tags,
        )

    def _fields(self, raw: list[bytes]) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
        """Returns the columns of all lines, and which lines are good, bool [lines]."""
        texts, decoded = _decoded(raw)
        lines = pl.Series("line", texts, pl.String)
        good = lines.str.contains(self._pattern) & pl.Series(decoded)
        delimiter = self._schema.delimiter
        parts = lines.set(~good, None).to_frame().select(
            pl.col("line").str.split_exact(delimiter, len(self._names) - 1)
        )  # fmt: skip
        frame = parts["line"].struct.rename_fields(self._names).struct.unnest()
        columns = {}
        for name, field in zip_strict(self._names, self._schema.fields):
            text = frame[name].replace("", None) if field.kind != TEXT else frame[name]
            if field.kind == TEXT:
                category = name in self._categories
                columns[name] = _hashed(text) if category else text
                continue
            if field.kind == HEX:
                number = text.str.to_integer(base=16, dtype=pl.UInt32, strict=False)
            else:
                signed = field.role == DENSE or name == self._label
                number = text.cast(pl.Int32 if signed else pl.UInt32, strict=False)
            good &= number.is_not_null() | text.is_null()
            columns[name] = number
        return pl.DataFrame(columns), good.to_numpy()


def _decoded(raw: list[bytes]) -> tuple[list[str], list[bool]]:
    """Decodes lines; returns their texts and which of them are UTF-8."""
    try:
        return b"\n".join(raw).decode().split("\n"), [True] * len(raw)
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


def _hashed(texts: pl.Series) -> pl.Series:
    """Returns the number of each text, null for empty texts; hashes each distinct text once."""
    distinct = texts.unique().drop_nulls()
    numbers = text_hash(distinct.to_list())
    hashes = dict(zip_strict(distinct.to_list(), numbers))
    hashes.pop("", None)
    return texts.replace_strict(
        list(hashes), pl.Series(list(hashes.values()), dtype=pl.UInt32), default=None,
        return_dtype=pl.UInt32,
    ) if hashes else pl.Series(texts.name, [None] * len(texts), pl.UInt32)  # fmt: skip
