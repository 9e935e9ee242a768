"""Makes rows of logs with columns of any kind, by the expressions that both engines share.

It does for these logs what `LogParser` does for lines of numbers. This module must not know about
ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlrm.formats.bags import BagTable
from preprocess import row_expressions
from preprocess.bad_rows import NAMED
from preprocess.bag_expressions import bag_items
from preprocess.columns import HASH, VALUE, LogColumns
from preprocess.engine_polars.blocks import TextBlock
from preprocess.engine_polars.parser import ParsedRows, hashed
from preprocess.engine_polars.text_hashes import hashed_ids
from preprocess.field_frame import FieldFrames
from preprocess.learned import Learned
from preprocess.polars_dialect import DIALECT
from preprocess.schema import HEX, TEXT
from preprocess.splits import SplitRule

_LABEL, _TAG = "label", "tag"


def block_lines(block: TextBlock) -> list[bytes]:
    """Returns the lines of a block without their line ends."""
    lines = block.text.split(b"\n")[: block.lines]
    return [line.removesuffix(b"\r") for line in lines]


class ColumnParser:
    """Parses blocks of text; several threads may do so at once.

    Args:
        paths: The files, for error messages.
        log: The columns.
        split: How rows are divided.
        learned: What a pass over the log has learnt.
    """

    def __init__(
        self, paths: Sequence[Path], log: LogColumns, split: SplitRule, learned: Learned
    ) -> None:
        self._paths = list(paths)
        self._log = log
        self._frames = FieldFrames(log)
        fields = self._frames.fields
        self._numbers = {
            table: dict(zip(texts["text"].to_list(), texts["value"].to_list()))
            for table, texts in learned.texts.items()
        }
        self._rows = [
            row_expressions.label(DIALECT, log.label, fields[log.label.column])
            .cast(pl.Int32)
            .alias(_LABEL)
        ]
        for i, (column, known) in enumerate(zip(log.dense, learned.dense)):
            value = row_expressions.dense(DIALECT, column, fields[column.column], known)
            self._rows.append(value.cast(pl.Float32).alias(f"dense_{i}"))
        self._bags = log.bag_tables
        for table, category in enumerate(log.categories):
            if category.bag:
                items = bag_items(DIALECT, log, category, fields)
                self._rows += [
                    items.found.alias(f"found_{table}"),
                    items.ids.alias(f"table_{table}"),
                ]
                if items.weights is not None:
                    self._rows.append(items.weights.alias(f"weights_{table}"))
                continue
            text = row_expressions.category(DIALECT, category, fields[category.column])
            self._rows.append(text.alias(f"table_{table}"))
        if log.split is not None:
            tag = row_expressions.tag(DIALECT, split, fields[log.split])
            self._rows.append(tag.cast(pl.Int32).alias(_TAG))

    def parse(self, block: TextBlock) -> ParsedRows:
        """Returns the good rows of a block, and describes the first bad ones."""
        raw = block_lines(block)
        frame, good = self._frames.read(raw)
        bad = np.flatnonzero(~good)
        named = bad[:NAMED].tolist()
        faults = self._frames.faults([raw[row] for row in named])
        # Only a lazy frame evaluates once what several expressions share, such as split texts.
        rows = frame.filter(pl.Series(good)).lazy().select(self._rows).collect()
        singles = range(len(self._log.categories) - len(self._bags))
        values = [self._values(table, rows[f"table_{table}"]) for table in singles]
        lengths = [_lengths(rows[f"table_{bag.table}"]) for bag in self._bags]
        missing = np.stack(
            [*(column.is_null().to_numpy() for column in values), *(size == 0 for size in lengths)],
            1,
        )
        columns = [
            rows[_LABEL].to_numpy(),
            *(rows[f"dense_{i}"].to_numpy() for i in range(len(self._log.dense))),
            *(column.fill_null(0).to_numpy() for column in values),
            *lengths,
        ]
        if self._log.split is not None:
            columns.append(rows[_TAG].to_numpy())
        path = self._paths[block.file]
        return ParsedRows(
            block.file,
            np.stack([np.ascontiguousarray(column).view(np.int32) for column in columns]),
            missing,
            np.count_nonzero(missing, axis=0),
            len(bad),
            [f"{path}, line {block.line + row}: {fault}" for row, fault in zip(named, faults)],
            [self._words(bag, rows) for bag in self._bags],
            [int((rows[f"found_{bag.table}"] > bag.max_ids).sum()) for bag in self._bags],
        )

    def _words(self, bag: BagTable, rows: pl.DataFrame) -> NDArray[np.int32]:
        """Returns the words of the ids of a table with bags, int32 [ids, 1 or 2]."""
        # An empty list has null in its place; no text is null.
        values = self._values(bag.table, rows[f"table_{bag.table}"].explode().drop_nulls())
        words = np.empty((len(values), 1 + bag.weights), np.int32)
        words[:, 0] = values.to_numpy().view(np.int32)
        if bag.weights:
            texts = rows[f"weights_{bag.table}"].explode().drop_nulls()
            words[:, 1] = texts.cast(pl.Float64).cast(pl.Float32).to_numpy().view(np.int32)
        return words

    def _values(self, table: int, texts: pl.Series) -> pl.Series:
        """Returns the number of each text, uint32; null where there is none."""
        kind = self._log.categories[table].kind
        if kind == TEXT:
            return hashed(texts)
        if kind == HASH:
            return hashed_ids(texts, self._log.categories[table].modulo)
        if kind == HEX:
            return texts.replace("", None).str.to_integer(base=16, dtype=pl.UInt32, strict=False)
        if kind != VALUE:
            return texts.cast(pl.UInt32, strict=False)
        distinct = [text for text in texts.unique().to_list() if text]
        if not distinct:
            return pl.Series(texts.name, [None] * len(texts), pl.UInt32)
        numbers = self._numbers[table]
        known = pl.Series([numbers[text] for text in distinct], dtype=pl.UInt32)
        return texts.replace_strict(distinct, known, default=None, return_dtype=pl.UInt32)


def _lengths(lists: pl.Series) -> NDArray[np.int32]:
    return lists.list.len().cast(pl.Int32).to_numpy()
