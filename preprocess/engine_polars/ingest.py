"""A complete run on one machine: build the vocabulary, assign ids, write, publish.

Each step continues where a killed run stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dlrm.formats import atomic_files
from dlrm.formats.checksums import FileSum
from dlrm.formats.folder_lock import lock_folder
from preprocess.days import check_new_day, counted_days
from preprocess.dictionary_files import (
    TableIds,
    check_first_id,
    check_reuse,
    read_description,
    read_table,
    write_table,
)
from preprocess.engine_polars.final_ids import assigned_ids
from preprocess.engine_polars.first_pass import FirstPass
from preprocess.engine_polars.learn import learn_columns, learn_nothing, load_learned
from preprocess.engine_polars.output_writers import WritePlan, WriteProgress
from preprocess.engine_polars.vocabulary import build_vocabulary
from preprocess.engine_polars.write import write
from preprocess.files import write_all
from preprocess.log_statistics import LogStatistics, describe
from preprocess.options import Options
from preprocess.outputs import WORK, Journal, LocalStore, packing, publish
from preprocess.progress import Progress
from preprocess.splits import RowRange, check_training
from preprocess.summary import Summary

_LEARNT = "columns"


def ingest(
    sources: Sequence[str], output: str, options: Options, progress: Progress, restart: bool
) -> Summary:
    """Makes a result, or continues an unfinished run.

    Args:
        sources: The raw logs in order: plain text, `.gz` or Parquet.
        output: The output folder; it is created if absent.
        options: The options of the run.
        progress: Makes the progress display of each pass.
        restart: Whether to discard an unfinished run in `output`.

    Raises:
        ValueError: There are too many bad rows, or the rows cannot be split as asked.
        OSError: A file cannot be read or written.
    """
    paths = [Path(source) for source in sources]
    command = options.identity("polars")
    for number, path in enumerate(paths):
        status = path.stat()
        command[f"input {number}"] = f"{path} ({status.st_size} bytes of {status.st_mtime_ns})"
    folder = Path(output)
    held = lock_folder(folder)
    try:
        store = LocalStore(folder)
        journal = Journal(store, output)
        state = journal.begin(command, restart)
        return PolarsIngest(paths, folder, options, progress, store, journal).run(state)
    finally:
        os.close(held)


class PolarsIngest:
    """The steps of a run; `run` begins with the step that the journal names."""

    def __init__(
        self,
        sources: list[Path],
        folder: Path,
        options: Options,
        progress: Progress,
        store: LocalStore,
        journal: Journal,
    ) -> None:
        self._sources = sources
        self._folder = folder
        self._work = folder / WORK
        self._options = options
        self._progress = progress
        self._store = store
        self._journal = journal

    def run(self, state: dict[str, Any]) -> Summary:
        """Runs the steps that are left.

        Args:
            state: The state that the journal has; empty at first.
        """
        start = time.perf_counter()
        state = self._learn(state)
        if state.get("phase", "vocabulary") == "vocabulary":
            state = self._number(self._build_vocabulary(state))
            self._journal.save(state)
        middle = time.perf_counter()
        if state["phase"] == "write":
            state = self._write(state)
            self._journal.save(state)
        sums = {name: FileSum(*entry) for name, entry in state["sums"].items()}
        publish(self._store, self._options, state["description"], sums)
        return Summary(state["description"], middle - start, time.perf_counter() - middle)

    def _learn(self, state: dict[str, Any]) -> dict[str, Any]:
        """Runs the pass over columns of any kind; returns the state for pass one."""
        if self._options.schema.columns is None or state.get("phase", _LEARNT) != _LEARNT:
            return state
        if not state:
            self._work.mkdir(exist_ok=True)
            total = sum(path.stat().st_size for path in self._sources)
            try:
                if not self._options.schema.columns.learns:
                    learn_nothing(self._work, self._options)
                    return {}
                with self._progress("pass 0, columns", total) as display:
                    learn_columns(self._sources, self._work, self._options, display)
            except (ValueError, OSError):
                self._store.remove(WORK)
                raise
            self._journal.save({"phase": _LEARNT})
        return {}

    def _build_vocabulary(self, state: dict[str, Any]) -> FirstPass:
        """Runs pass one; removes the work folder if no other run could continue it."""
        self._work.mkdir(exist_ok=True)
        total = sum(path.stat().st_size for path in self._sources)
        try:
            with self._progress("pass 1, dictionaries", total) as display:
                first_pass = build_vocabulary(
                    self._sources, self._work, self._options, state, self._journal.save, display
                )
        except (ValueError, OSError):
            if not self._journal.kept:
                self._store.remove(WORK)
            raise
        try:
            first_pass.statistics.check_rows(list(map(str, self._sources)))
            self._splits(first_pass.statistics)
        except ValueError:
            # The user needs another command, which could not continue this run.
            self._store.remove(WORK)
            raise
        return first_pass

    def _splits(self, statistics: LogStatistics) -> list[RowRange] | None:
        if self._options.split.by_row:
            return None
        return self._options.split.parts(
            statistics.rows_by_file, [path.name for path in self._sources]
        )

    def _number(self, first_pass: FirstPass) -> dict[str, Any]:
        """Assigns the final ids and writes the dictionaries; returns the state before pass two."""
        statistics, options = first_pass.statistics, self._options
        statistics.distinct = [len(dictionary) for dictionary in first_pass.dictionaries]
        old, texts = self._old_tables(statistics), self._texts()
        for table, dictionary in enumerate(first_pass.dictionaries):
            if table in options.rules.hashed:
                statistics.unknown.append(0)
                statistics.vocab_sizes.append(options.rules.modulus(table) or 0)
                continue
            ids, final = assigned_ids(options, table, old[table] if old else None, dictionary)
            write_table(self._work, table, ids, texts.get(table))
            known = final[:-1] >= 0
            statistics.unknown.append(int(dictionary.counts[~known].sum()))
            statistics.vocab_sizes.append(ids.vocab_size)
            with open(self._ids_file(table), "wb", buffering=0) as file:
                write_all(file, np.maximum(final, 0))
            atomic_files.sync_file(self._ids_file(table))
        first_pass.dictionaries.clear()
        return {
            "phase": "write",
            "statistics": vars(statistics),
            "parts": first_pass.parts,
            "written": {},
        }

    def _old_tables(self, statistics: LogStatistics) -> dict[int, TableIds] | None:
        """Reads the dictionary of an earlier result, if its ids are used; notes its days."""
        options = self._options
        if not options.dictionary:
            return None
        try:
            folder = Path(options.dictionary)
            description = read_description(folder, options.dictionary_flag)
            sizes = check_reuse(description, options)
            tables = {t: read_table(folder, t, sizes[t]) for t in options.dictionary_tables}
            if options.append_day:
                statistics.earlier_days = counted_days(description)
                check_new_day(statistics, options)
                for table, ids in tables.items():
                    check_first_id(ids.first_id if len(ids.values) else None, table, options)
        except (ValueError, OSError):
            # The user needs another command, which could not continue this run.
            self._store.remove(WORK)
            raise
        return tables

    def _texts(self) -> Mapping[int, pl.DataFrame]:
        """Returns the texts of tables whose values are texts, (value, text) each."""
        log = self._options.schema.columns
        return load_learned(self._work, log).texts if log is not None else {}

    def _ids_file(self, table: int) -> Path:
        return self._work / f"ids-{table}.bin"

    def _write(self, state: dict[str, Any]) -> dict[str, Any]:
        """Runs pass two, which writes the data files; returns the state before publishing."""
        statistics, options = LogStatistics(**state["statistics"]), self._options
        ids: list[NDArray[np.int32] | None] = []
        for table in range(options.num_categorical):
            if table in options.rules.hashed:
                ids.append(None)
                continue
            final = np.fromfile(self._ids_file(table), "<i4")
            unchanged = options.rules.missing_is_value and np.array_equal(
                final[:-1], np.arange(len(final) - 1, dtype=np.int32)
            )
            ids.append(None if unchanged else final)
        packed = packing(options, statistics.vocab_sizes)
        pack = packed.pack if packed else None
        plan = WritePlan(self._work, options, state["parts"], self._splits(statistics), ids, pack)

        def save(written: Any) -> None:
            self._journal.save({**state, "written": written})

        with self._progress("pass 2, ids", statistics.rows) as display:
            written = write(plan, state["written"], save, display)
        return self._done(statistics, written)

    def _done(self, statistics: LogStatistics, written: WriteProgress) -> dict[str, Any]:
        check_training(written.samples, self._options.split.by)
        names = [path.name for path in self._sources]
        return {
            "phase": "publish",
            "description": describe(names, self._options, statistics, written.samples),
            "sums": {name: (size, f"{crc:08x}") for name, (size, crc) in written.sums.items()},
        }
