"""Parses blocks of text into columns of numbers, with strict checks.

If all fields are numbers, a compiled loop parses a block. If that leaves any doubt, or if there are
other fields, each line is matched with the schema's pattern. This module must not know about ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlrm.formats.zip_strict import zip_strict
from preprocess.bad_rows import NAMED
from preprocess.engine_polars import kernels
from preprocess.engine_polars.blocks import TextBlock
from preprocess.field_frame import decode_lines
from preprocess.schema import DENSE, HEX, TEXT, Schema, text_hash


@dataclass(frozen=True)
class ParsedRows:
    """The good rows of a block, and what is known about its bad ones.

    Attributes:
        file: The index of the file.
        columns: The columns of the records, int32 [width, rows]: label, dense values, categories,
            of which the 32 bits are those of a uint32, and with a split field its tag. Missing
            values are 0. Tables with bags have their numbers of ids instead.
        missing: Whether a category is missing, bool [rows, tables].
        missing_counts: Number of rows in which it is missing, int64 [tables].
        bad_rows: Number of bad rows.
        first_bad_rows: Descriptions of the first ten of them.
        bags: For each table with bags the words of its ids, int32 [ids, 1 or 2]: the value and, if
            it has weights, the bits of the weight as float32.
        shortened_bags: For each of them the number of bags that had more ids.
    """

    file: int
    columns: NDArray[np.int32]
    missing: NDArray[np.bool_]
    missing_counts: NDArray[np.int64]
    bad_rows: int = 0
    first_bad_rows: Sequence[str] = ()
    bags: Sequence[NDArray[np.int32]] = ()
    shortened_bags: Sequence[int] = ()


class LogParser:
    """Parses blocks of text; several threads may do so at once.

    Args:
        paths: The files, for error messages.
        schema: The fields of a row.
        tags: The tag of each text of the split field that is not for training.
    """

    def __init__(
        self, paths: Sequence[Path], schema: Schema, tags: Mapping[str, int] | None = None
    ) -> None:
        self._paths = list(paths)
        self._schema = schema
        self._tags = dict(tags or {})
        self._pattern = schema.line_pattern()
        self._names = [f"field_{i}" for i in range(len(schema.fields))]
        order = [schema.label, *schema.dense, *schema.categorical]
        self._record = [self._names[i] for i in order]
        self._first_table = 1 + len(schema.dense)
        self._categories = self._record[self._first_table :]
        kinds = [kernels.LABEL, *[kernels.INTEGER] * len(schema.dense)]
        kinds += [kernels.HEX] * len(schema.categorical)
        self._kinds, self._targets = np.zeros((2, len(schema.fields)), np.int64)
        if schema.numeric:
            self._kinds[order], self._targets[order] = kinds, range(len(order))

    def parse(self, block: TextBlock) -> ParsedRows:
        """Returns the good rows of a block, and describes the first bad ones."""
        return (self._schema.numeric and self._read_numbers(block)) or self._read_lines(block)

    def _read_numbers(self, block: TextBlock) -> ParsedRows | None:
        """Parses a block of numbers; returns None if any row may be bad."""
        tables = len(self._categories)
        rows = ParsedRows(
            block.file,
            np.empty((len(self._record), block.lines), np.int32),
            np.empty((block.lines, tables), np.bool_),
            np.zeros(tables, np.int64),
        )
        good = kernels.parse(
            np.frombuffer(block.text, np.uint8),
            ord(self._schema.delimiter),
            self._kinds,
            self._targets,
            rows.columns,
            rows.missing,
            rows.missing_counts,
        )
        return rows if good else None

    def _read_lines(self, block: TextBlock) -> ParsedRows:
        """Parses a block line by line, and counts its bad rows."""
        raw = block.text.split(b"\n")[: block.lines]
        raw = [line.removesuffix(b"\r") for line in raw]
        frame, good = self._fields(raw)
        bad = np.flatnonzero(~good)
        path = self._paths[block.file]
        first_bad = [
            f"{path}, line {block.line + row}: {self._schema.fault(raw[row])}"
            for row in bad[:NAMED].tolist()
        ]
        if bad.size:
            frame = frame.filter(pl.Series(good))
        columns = [frame[name].fill_null(0).to_numpy() for name in self._record]
        if self._schema.split is not None:
            texts = frame[self._names[self._schema.split]]
            tags = texts.replace_strict(self._tags, default=0, return_dtype=pl.Int32)
            columns.append(tags.to_numpy())
        missing = np.stack([frame[name].is_null().to_numpy() for name in self._categories], 1)
        return ParsedRows(
            block.file,
            np.stack([column.view(np.int32) for column in columns]),
            missing,
            np.count_nonzero(missing, axis=0),
            len(bad),
            first_bad,
        )

    def _fields(self, raw: list[bytes]) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
        """Returns the columns of all lines, and which lines are good, bool [lines]."""
        texts, decoded = decode_lines(raw)
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
                columns[name] = hashed(text) if category else text
                continue
            if field.kind == HEX:
                number = text.str.to_integer(base=16, dtype=pl.UInt32, strict=False)
            else:
                signed = field.role == DENSE or name == self._record[0]
                number = text.cast(pl.Int32 if signed else pl.UInt32, strict=False)
            good &= number.is_not_null() | text.is_null()
            columns[name] = number
        return pl.DataFrame(columns), good.to_numpy()


def hashed(texts: pl.Series) -> pl.Series:
    """Returns the number of each text, null for empty texts; hashes each distinct text once."""
    distinct = texts.unique().drop_nulls()
    numbers = text_hash(distinct.to_list())
    hashes = dict(zip_strict(distinct.to_list(), numbers))
    hashes.pop("", None)
    return texts.replace_strict(
        list(hashes), pl.Series(list(hashes.values()), dtype=pl.UInt32), default=None,
        return_dtype=pl.UInt32,
    ) if hashes else pl.Series(texts.name, [None] * len(texts), pl.UInt32)  # fmt: skip
