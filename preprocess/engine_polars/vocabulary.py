"""Pass one builds the vocabulary: it parses all text once and gives every value a provisional id.

Provisional ids follow first appearance, so that they depend on the rows alone. The pass is divided
into parts. A finished part leaves its records (`rows-N.bin`: label, dense columns, provisional ids
and, with a split field, the tag) and the values that were new in it (`values-N.bin`). A killed pass
continues from these files: the values restore the dictionaries, and the records restore the counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.data.read_ahead import read_ahead
from dlrm.formats import atomic_files
from dlrm.formats.zip_strict import zip_strict
from preprocess.bad_rows import BadRows
from preprocess.engine_polars.blocks import ResumePoint, TextBlock, read_blocks
from preprocess.engine_polars.column_parser import ColumnParser
from preprocess.engine_polars.dictionary import Dictionary
from preprocess.engine_polars.learn import load_learned
from preprocess.engine_polars.parser import LogParser, ParsedRows
from preprocess.files import write_all
from preprocess.log_statistics import LogStatistics
from preprocess.options import Options
from preprocess.outputs import Save
from preprocess.progress import PassProgress

RECORD_TYPE = np.dtype("<i4")
_RECOUNT_ROWS = 1 << 18
_CORES = os.cpu_count() or 1
_PARSERS = min(_CORES, 4)  # each holds a block of text and its columns
_ENCODERS = min(_CORES, 8)  # more would wait for the thread with the largest table


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


def _values_file(work: Path, part: int) -> Path:
    return work / f"values-{part:05}.bin"


def record_columns(options: Options) -> int:
    """Returns the number of int32 values in a provisional record."""
    return options.width + (options.schema.split is not None)


def build_vocabulary(
    sources: Sequence[Path],
    work: Path,
    options: Options,
    state: Mapping[str, Any],
    save: Save,
    display: PassProgress,
) -> FirstPass:
    """Parses all logs, from the resume point in `state` or from the beginning.

    Args:
        sources: The raw logs in order.
        work: The folder of the parts.
        options: The options of the run.
        state: The state that the journal has; empty at first.
        save: Saves a state durably.
        display: Shows the progress.

    Raises:
        ValueError: There are too many bad rows; the message names file and line of the first.
        OSError: A file cannot be read or written.
    """
    first_pass = _restored(work, options, state, len(sources))
    bad = BadRows(
        options.max_bad_rows, first_pass.statistics.bad_rows, first_pass.statistics.first_bad_rows
    )
    bad.add(0, [])
    parser = _parser(sources, work, options)
    sizes = [path.stat().st_size for path in sources]
    with (
        _Recorder(work, options, first_pass, save) as recorder,
        contextlib.closing(
            read_blocks(sources, options.schema, options.block_bytes, first_pass.resume_point)
        ) as blocks,
        contextlib.closing(_parsed(parser, blocks)) as parsed,
    ):
        last: TextBlock | None = None
        for block, rows in parsed:
            if last and last.file != block.file:
                recorder.finish(ResumePoint(block.file))
            bad.add(rows.bad_rows, rows.first_bad_rows)
            recorder.add(rows)
            first_pass.statistics.bad_rows = bad.count
            last = block
            if recorder.text_bytes(len(block.text)) >= options.part_bytes:
                recorder.finish(block.end)
            done = sum(sizes[: block.file]) + block.position
            display.advance(done, first_pass.statistics.rows)
        recorder.finish(ResumePoint(len(sources)))
    return first_pass


def _parser(sources: Sequence[Path], work: Path, options: Options) -> LogParser | ColumnParser:
    log = options.schema.columns
    if log is not None:
        return ColumnParser(sources, log, options.split, load_learned(work, log))
    tags = options.split.tags if options.schema.split is not None else None
    return LogParser(sources, options.schema, tags)


def _parsed(
    parser: LogParser | ColumnParser, blocks: Iterable[TextBlock]
) -> Generator[tuple[TextBlock, ParsedRows], None, None]:
    """Yields blocks with their rows, in order; threads parse ahead.

    An error of the reader comes after the rows of all blocks before it.
    """

    def tasks() -> Iterator[TextBlock | Exception]:
        try:
            yield from blocks
        except (ValueError, OSError) as error:
            yield error

    def parse(task: TextBlock | Exception) -> tuple[TextBlock, ParsedRows]:
        if isinstance(task, Exception):
            raise task
        return task, parser.parse(task)

    return read_ahead(parse, tasks(), lookahead=_PARSERS - 1, readers=_PARSERS)


def _restored(work: Path, options: Options, state: Mapping[str, Any], files: int) -> FirstPass:
    """Restores the result of the finished parts from the journal's state and their files."""
    tables = options.num_categorical
    if not state:
        statistics = LogStatistics([0] * files, missing=[0] * tables)
        return FirstPass(statistics, dictionaries=[Dictionary() for _ in range(tables)])
    first_pass = FirstPass(
        LogStatistics(**state["statistics"]),
        ResumePoint(**state["resume_point"]),
        state["parts"],
        state["new_values"],
        [Dictionary() for _ in range(tables)],
    )
    for part, sizes in enumerate(first_pass.new_values):
        values = np.fromfile(_values_file(work, part), "<u4")
        pieces = np.split(values, np.cumsum(sizes)[:-1])
        for dictionary, piece in zip_strict(first_pass.dictionaries, pieces):
            dictionary.extend(piece)
    for part in range(len(first_pass.parts)):
        _recount(rows_file(work, part), options, first_pass.dictionaries)
    return first_pass


def _recount(path: Path, options: Options, dictionaries: Sequence[Dictionary]) -> None:
    """Counts the values of a finished part again, from its provisional records."""
    columns = record_columns(options)
    with open(path, "rb") as file:
        while len(flat := np.fromfile(file, RECORD_TYPE, _RECOUNT_ROWS * columns)):
            records = flat.reshape(-1, columns)
            for column, dictionary in enumerate(dictionaries, 1 + options.num_dense):
                ids = records[:, column]
                dictionary.count(ids[ids >= 0])


class _Recorder:
    """Encodes rows while the next block is parsed, and saves finished parts in the background."""

    def __init__(self, work: Path, options: Options, first_pass: FirstPass, save: Save) -> None:
        self._work = work
        self._options = options
        self._first_pass = first_pass
        self._save = save
        self._encoder = ThreadPoolExecutor(1, "encoder")
        self._tables = ThreadPoolExecutor(_ENCODERS, "tables")
        self._saver = ThreadPoolExecutor(1, "saver")
        self._encoding: Future[None] | None = None
        self._saving: Future[None] | None = None
        self._known = [len(dictionary) for dictionary in first_pass.dictionaries]
        self._rows = self._text = 0
        self._file = open(rows_file(work, len(first_pass.parts)), "wb", buffering=0)  # noqa: SIM115

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self._encoder.shutdown()
        self._tables.shutdown()
        self._saver.shutdown()
        self._file.close()
        if not any(error) and self._saving:
            self._saving.result()

    def add(self, rows: ParsedRows) -> None:
        """Encodes rows in the background; raises the error of the previous ones, if any."""
        self._settle()
        self._first_pass.statistics.rows_by_file[rows.file] += rows.columns.shape[1]
        self._rows += rows.columns.shape[1]
        self._encoding = self._encoder.submit(self._record, rows, self._file)

    def _record(self, rows: ParsedRows, file: Any) -> None:
        records = _encode(rows, self._options, self._first_pass, self._tables)
        if len(records):
            write_all(file, records)

    def text_bytes(self, more: int) -> int:
        """Adds to the bytes of text in the present part, and returns their sum."""
        self._text += more
        return self._text

    def finish(self, resume_point: ResumePoint) -> None:
        """Ends the present part; it is saved in the background.

        Args:
            resume_point: The position after the part.
        """
        self._settle()
        first_pass, part = self._first_pass, len(self._first_pass.parts)
        if resume_point == first_pass.resume_point:
            return
        if self._saving:
            self._saving.result()
        fresh = [d.values[known:] for d, known in zip_strict(first_pass.dictionaries, self._known)]
        first_pass.resume_point = resume_point
        first_pass.parts.append(self._rows)
        first_pass.new_values.append([len(values) for values in fresh])
        self._known = [len(dictionary) for dictionary in first_pass.dictionaries]
        values = np.concatenate(fresh)
        self._saving = self._saver.submit(
            self._save_part, self._file, _values_file(self._work, part), values, first_pass.state()
        )
        self._rows = self._text = 0
        self._file = open(rows_file(self._work, part + 1), "wb", buffering=0)  # noqa: SIM115

    def _settle(self) -> None:
        if self._encoding:
            self._encoding.result()
            self._encoding = None

    def _save_part(
        self, rows: Any, path: Path, values: NDArray[np.uint32], state: Mapping[str, Any]
    ) -> None:
        with rows:
            atomic_files.sync(rows.fileno(), rows.name)
        with open(path, "wb", buffering=0) as file:
            write_all(file, values.astype("<u4", copy=False))
        atomic_files.sync_file(path)
        self._save(state)


def _encode(
    batch: ParsedRows, options: Options, first_pass: FirstPass, tables: ThreadPoolExecutor
) -> NDArray[np.int32]:
    """Returns rows as provisional records; -1 marks a missing category that is not a value."""
    rules, statistics, columns = options.rules, first_pass.statistics, batch.columns
    statistics.positives += int(np.count_nonzero(columns[0]))
    for column in range(options.num_dense):
        values, lowest = columns[1 + column], rules.lowest(column)
        statistics.raised_dense += int(np.count_nonzero(values < lowest))
        np.maximum(values, lowest, out=values)
    for table, count in enumerate(batch.missing_counts.tolist()):
        statistics.missing[table] += count
    values = columns.view(np.uint32)[1 + options.num_dense :]

    def encode(table: int) -> None:
        absent = None if rules.missing_is_value else batch.missing[:, table]
        first_pass.dictionaries[table].encode(values[table], absent, rules.modulus(table))

    # Tables share nothing, and the loops let go of the interpreter lock.
    list(tables.map(encode, range(options.num_categorical)))
    return np.ascontiguousarray(columns.T, RECORD_TYPE)
