"""The pass that learns texts and statistics of columns on one machine, before pass one.

It keeps the distinct texts and a bounded sample of the dense values in memory, never the rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlrm.formats import atomic_files
from preprocess import row_expressions
from preprocess.bad_rows import BadRows
from preprocess.bag_expressions import bag_items
from preprocess.columns import LogColumns
from preprocess.dictionary_files import read_description
from preprocess.engine_polars.blocks import ResumePoint, read_blocks
from preprocess.engine_polars.column_parser import block_lines
from preprocess.field_frame import FieldFrames
from preprocess.learned import (
    STATISTICS,
    TEXTS_SCHEMA,
    Learned,
    old_texts,
    parse_statistics,
    statistics_text,
)
from preprocess.options import Options
from preprocess.polars_dialect import DIALECT
from preprocess.progress import PassProgress
from preprocess.splits import NAMES, TRAIN, RowRange
from preprocess.transforms import DenseStatistics, learn, sample_stride

Float64 = NDArray[np.float64]


class _DenseSample:
    """Evenly spaced rows of the log: their numbers, tags and dense values."""

    def __init__(self) -> None:
        self._stride = 1
        self._kept: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Takes those of the next rows that belong to the sample; thins it when it has grown."""
        numbers = np.arange(self._rows, self._rows + rows.height)
        self._rows += rows.height
        stride = sample_stride(self._rows)
        numbered = rows.with_columns(pl.Series("row", numbers))
        self._kept.append(numbered.filter(pl.col("row") % stride == 0))
        if stride != self._stride:
            self._kept = [frame.filter(pl.col("row") % stride == 0) for frame in self._kept]
            self._stride = stride

    def training(self, splits: Sequence[RowRange] | None) -> pl.DataFrame:
        """Returns the sampled rows of the training part, in order."""
        sample = pl.concat(self._kept)
        if splits is None:
            return sample.filter(pl.col("tag") == NAMES.index(TRAIN))
        inside = [
            pl.col("row").is_between(part.start, part.stop, closed="left")
            for part in splits
            if part.name == TRAIN
        ]
        return sample.filter(pl.any_horizontal(inside))


def learn_columns(
    sources: Sequence[Path], work: Path, options: Options, display: PassProgress
) -> None:
    """Learns what the columns of a log need, and writes it into the work folder.

    Args:
        sources: The raw logs in order.
        work: The work folder; `load_learned` reads the result from there.
        options: The options of the run.
        display: Shows the progress, in bytes.

    Raises:
        ValueError: There are too many bad rows, or nothing to learn from.
        OSError: A file cannot be read or written.
    """
    log = options.schema.columns
    assert log
    texts = {table: _old(options, table) for table in log.text_tables}
    numbers = [dict(zip(frame["text"], frame["value"])) for frame in texts.values()]
    following = [max(known.values(), default=-1) + 1 for known in numbers]
    sample, rows_by_file = _DenseSample(), [0] * len(sources)
    bad = BadRows(options.max_bad_rows)
    reader = _LearntExpressions(log, options)
    sizes = [path.stat().st_size for path in sources]
    blocks = read_blocks(sources, options.schema, options.block_bytes, ResumePoint())
    with contextlib.closing(blocks):
        for block in blocks:
            raw = block_lines(block)
            frame, good = reader.frames.read(raw)
            wrong = np.flatnonzero(~good)
            named = wrong[: 1 + options.max_bad_rows][:10].tolist()
            faults = reader.frames.faults([raw[row] for row in named])
            path = sources[block.file]
            shown = [f"{path}, line {block.line + r}: {f}" for r, f in zip(named, faults)]
            bad.add(len(wrong), shown)
            frame = frame.filter(pl.Series(good))
            for i, series in enumerate(frame.select(reader.texts)):
                if series.dtype == pl.List:
                    series = series.explode()
                for text in series.unique(maintain_order=True):
                    if text and text not in numbers[i]:
                        numbers[i][text] = following[i]
                        following[i] += 1
            sample.add(frame.select(reader.dense))
            rows_by_file[block.file] += frame.height
            display.advance(sum(sizes[: block.file]) + block.position, sum(rows_by_file))
    for table, known in zip(texts, numbers):
        frame = pl.DataFrame({"value": list(known.values()), "text": list(known)}, TEXTS_SCHEMA)
        path = _texts_file(work, table)
        path.parent.mkdir(exist_ok=True)
        frame.write_parquet(path)
        atomic_files.sync_file(path)
    dense = _statistics(options, log, sample, rows_by_file, [path.name for path in sources])
    _write_statistics(work, log, dense)


def learn_nothing(work: Path, options: Options) -> None:
    """Does the work of `learn_columns` for a log that needs no pass; see `LogColumns.learns`.

    Raises:
        ValueError: The dictionary that is used has other dense columns.
    """
    log = options.schema.columns
    assert log
    dense = _old_statistics(options, log) or [learn(column, np.zeros(0)) for column in log.dense]
    _write_statistics(work, log, dense)


def _write_statistics(work: Path, log: LogColumns, dense: Sequence[DenseStatistics]) -> None:
    target = work / STATISTICS
    target.parent.mkdir(exist_ok=True)
    atomic_files.write_text(target, statistics_text(log, dense))


def load_learned(work: Path, log: LogColumns) -> Learned:
    """Returns what `learn_columns` has written."""
    text = (work / STATISTICS).read_text(encoding="utf-8")
    dense = parse_statistics(log, text, str(work))
    return Learned(dense, {t: pl.read_parquet(_texts_file(work, t)) for t in log.text_tables})


class _LearntExpressions:
    """The expressions whose values are learnt from."""

    def __init__(self, log: LogColumns, options: Options) -> None:
        self.frames = FieldFrames(log)
        fields = self.frames.fields
        self.texts = []
        for table in log.text_tables:
            column = log.categories[table]
            texts = fields[column.column]
            if column.bag:
                texts = bag_items(DIALECT, log, column, fields).ids
            self.texts.append(texts.alias(f"table_{table}"))
        self.dense = [
            row_expressions.raw_number(DIALECT, column, fields[column.column], float("nan")).alias(
                f"dense_{i}"
            )
            for i, column in enumerate(log.dense)
        ]
        tag = pl.lit(0)
        if log.split is not None:
            tag = row_expressions.tag(DIALECT, options.split, fields[log.split])
        self.dense.append(tag.cast(pl.Int32).alias("tag"))


def _statistics(
    options: Options,
    log: LogColumns,
    sample: _DenseSample,
    rows_by_file: Sequence[int],
    names: Sequence[str],
) -> list[DenseStatistics]:
    """Returns the statistics of all dense columns: those of the dictionary, or new ones."""
    old = _old_statistics(options, log)
    if old is not None:
        return old
    if not sum(rows_by_file):
        raise ValueError(f"{', '.join(names)}: expected rows, found none; give a raw click log")
    splits = None if options.split.by_row else options.split.parts(rows_by_file, names)
    rows = sample.training(splits)
    return [learn(column, rows[f"dense_{i}"].to_numpy()) for i, column in enumerate(log.dense)]


def _old_statistics(options: Options, log: LogColumns) -> list[DenseStatistics] | None:
    """Returns the statistics of the dictionary; None without one."""
    if not options.dictionary:
        return None
    path = Path(options.dictionary) / STATISTICS
    text = path.read_text(encoding="utf-8") if path.exists() else None
    return parse_statistics(log, text, options.dictionary_flag)


def _old(options: Options, table: int) -> pl.DataFrame:
    if not options.dictionary:
        return pl.DataFrame(schema=TEXTS_SCHEMA)
    folder = Path(options.dictionary)
    read_description(folder, options.dictionary_flag)
    return old_texts(folder, table)


def _texts_file(work: Path, table: int) -> Path:
    return work / "texts" / f"table_{table}.parquet"
