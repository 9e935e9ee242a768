"""The result of pass one and its files, from which a killed pass continues.

The pass is divided into parts. A finished part leaves its records (`rows-N.bin`: label, dense
columns, provisional ids and, with a split field, the tag), the words of their bags (`words-N.bin`,
if there are any) and the values that were new in it (`values-N.bin`). The values restore the
dictionaries, and the records restore the counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlrm.formats.zip_strict import zip_strict
from preprocess.engine_polars.bag_words import BagWords, StoredRows
from preprocess.engine_polars.blocks import ResumePoint
from preprocess.engine_polars.dictionary import Dictionary
from preprocess.log_statistics import LogStatistics
from preprocess.options import Options

RECORD_TYPE = np.dtype("<i4")
_RECOUNT_ROWS = 1 << 18
_NO_WORDS = np.zeros(0, RECORD_TYPE)


@dataclass
class FirstPass:
    """The result of pass one so far; the journal keeps all of it but the dictionaries.

    Attributes:
        statistics: The statistics of the rows so far.
        resume_point: The position after the last finished part.
        parts: The number of rows of each finished part.
        new_values: For each finished part, the number of new values of each table.
        dictionaries: The dictionary of each table.
    """

    statistics: LogStatistics
    resume_point: ResumePoint = field(default_factory=ResumePoint)
    parts: list[int] = field(default_factory=list)
    new_values: list[list[int]] = field(default_factory=list)
    dictionaries: list[Dictionary] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Returns the state that the journal keeps."""
        return {
            "phase": "vocabulary",
            "statistics": asdict(self.statistics),
            "resume_point": asdict(self.resume_point),
            "parts": list(self.parts),
            "new_values": [list(sizes) for sizes in self.new_values],
        }


def rows_file(work: Path, part: int) -> Path:
    """Returns the path of the provisional records of a part."""
    return work / f"rows-{part:05}.bin"


def words_file(work: Path, part: int) -> Path:
    """Returns the path of the words of a part's bags; see `BagWords`."""
    return work / f"words-{part:05}.bin"


def values_file(work: Path, part: int) -> Path:
    """Returns the path of the values that were new in a part, table by table."""
    return work / f"values-{part:05}.bin"


def record_columns(options: Options) -> int:
    """Returns the number of int32 values in a provisional record."""
    return options.width + (options.schema.split is not None)


def restored(work: Path, options: Options, state: Mapping[str, Any], files: int) -> FirstPass:
    """Restores the result of the finished parts from the journal's state and their files.

    Args:
        work: The folder of the parts.
        options: The options of the run.
        state: The state that the journal has; empty at first.
        files: The number of logs.
    """
    tables = options.num_categorical
    if not state:
        bags = [0] * len(options.bags)
        statistics = LogStatistics([0] * files, missing=[0] * tables, shortened_bags=bags)
        return FirstPass(statistics, dictionaries=[Dictionary() for _ in range(tables)])
    first_pass = FirstPass(
        LogStatistics(**state["statistics"]),
        ResumePoint(**state["resume_point"]),
        state["parts"],
        state["new_values"],
        [Dictionary() for _ in range(tables)],
    )
    for part, sizes in enumerate(first_pass.new_values):
        values = np.fromfile(values_file(work, part), "<u4")
        pieces = np.split(values, np.cumsum(sizes)[:-1])
        for dictionary, piece in zip_strict(first_pass.dictionaries, pieces):
            dictionary.extend(piece)
    for part in range(len(first_pass.parts)):
        _recount(work, part, options, first_pass.dictionaries)
    return first_pass


def _recount(work: Path, part: int, options: Options, dictionaries: Sequence[Dictionary]) -> None:
    """Counts the values of a finished part again, from its provisional records and words."""
    layout = BagWords(options)
    for rows in stored_rows(work, part, options, _RECOUNT_ROWS):
        bags = layout.cut(rows)
        for table in options.dictionary_tables:
            if table < options.num_single:
                ids = rows.records[:, 1 + options.num_dense + table]
                dictionaries[table].count(ids[ids >= 0])
            else:
                dictionaries[table].count(bags[table - options.num_single][:, 0])


def stored_rows(work: Path, part: int, options: Options, most: int) -> Iterator[StoredRows]:
    """Yields the provisional records of a part with the words of their bags, `most` at a time."""
    columns, layout = record_columns(options), BagWords(options)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(rows_file(work, part), "rb", buffering=0))
        words = None
        if len(layout):
            words = stack.enter_context(open(words_file(work, part), "rb", buffering=0))
        while len(flat := np.fromfile(file, RECORD_TYPE, most * columns)):
            records = flat.reshape(-1, columns)
            if words is None:
                yield StoredRows(records, _NO_WORDS)
                continue
            size = int(layout.sizes(records).sum())
            yield StoredRows(records, np.fromfile(words, RECORD_TYPE, size))
