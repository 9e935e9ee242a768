"""A complete run on Spark: stage rows, build the vocabulary, write, publish.

Each step continues where a killed run stopped.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from dlrm.formats.checksums import FileSum
from dlrm.formats.file_names import RECORDS
from dlrm.formats.zip_strict import zip_strict
from preprocess.days import check_new_day, counted_days
from preprocess.dictionary_files import check_first_id, check_reuse
from preprocess.engine_spark.dictionary_output import write_locally, write_remotely
from preprocess.engine_spark.learnt_columns import LearntColumns
from preprocess.engine_spark.lookup import records
from preprocess.engine_spark.parse import (
    StagedFile,
    log_statistics,
    row_offsets,
    stage_file,
    staged_rows,
)
from preprocess.engine_spark.spark_session import spark_session
from preprocess.engine_spark.storage import HadoopFiles
from preprocess.engine_spark.vocabulary import (
    TableStatistics,
    first_ids,
    grown_ids,
    new_ids,
    old_ids,
    stage_new_ids,
    stage_value_counts,
    table_statistics,
)
from preprocess.engine_spark.write import (
    BucketAssignment,
    count_buckets,
    join_buckets,
    read_markers,
    write_buckets,
)
from preprocess.log_statistics import LogStatistics, describe
from preprocess.options import Options
from preprocess.outputs import WORK, Journal, LocalStore, packing, publish
from preprocess.progress import Progress
from preprocess.splits import RowRange, check_training
from preprocess.summary import Summary


def ingest(
    sources: Sequence[str],
    output: str,
    options: Options,
    progress: Progress,
    restart: bool,
    master: str | None,
) -> Summary:
    """Makes a result, or continues an unfinished run; see `preprocess.ingest.preprocess`."""
    with spark_session(master) as session:
        files = HadoopFiles(session)
        command = options.identity("spark")
        sizes = []
        for number, source in enumerate(sources):
            status = files.status(source)
            sizes.append(int(status.getLen()))
            command[f"input {number}"] = (
                f"{source} ({status.getLen()} bytes of {status.getModificationTime()})"
            )
        store = files.store(output)
        journal = Journal(store, output)
        state = journal.begin(command, restart)
        run = SparkIngest(session, files, list(sources), sizes, output, options, progress, journal)
        start = time.perf_counter()
        try:
            state = run.build_vocabulary(run.learn(state))
        except (ValueError, OSError):
            if not journal.kept:
                store.remove(WORK)
            raise
        middle = time.perf_counter()
        state = run.write(state)
        sums = {name: FileSum(*entry) for name, entry in state["sums"].items()}
        publish(store, options, state["description"], sums)
        return Summary(state["description"], middle - start, time.perf_counter() - middle)


class SparkIngest:
    """The steps of a run; the state in the journal shows which of them are done."""

    def __init__(
        self,
        session: SparkSession,
        files: HadoopFiles,
        sources: list[str],
        sizes: list[int],
        output: str,
        options: Options,
        progress: Progress,
        journal: Journal,
    ) -> None:
        self._session = session
        self._files = files
        self._sources = sources
        self._names = [source.rpartition("/")[2] for source in sources]
        self._sizes = sizes
        self._output = output
        self._options = options
        self._progress = progress
        self._journal = journal
        self._work = files.child(files.path(output), WORK)
        log = options.schema.columns
        self._columns = LearntColumns(session, files, output, options) if log is not None else None

    def _stage(self, name: str) -> str:
        return str(self._files.child(self._work, name).toString())

    def _save(self, state: dict[str, Any]) -> dict[str, Any]:
        self._journal.save(state)
        return state

    def learn(self, state: dict[str, Any]) -> dict[str, Any]:
        """Runs the pass over columns of any kind; returns the state for pass one.

        Args:
            state: The state that the journal has; empty at first.
        """
        if self._columns is None or state:
            return state
        with self._progress("pass 0, columns", 0):
            self._columns.learn(self._sources)
        return self._save({"files": {}})

    def build_vocabulary(self, state: dict[str, Any]) -> dict[str, Any]:
        """Stages rows and values; returns the state before pass two.

        Args:
            state: The state that the journal has; empty at first.
        """
        if "offsets" in state or "sums" in state:
            return state
        options, staged = self._options, self._parse(state)
        statistics = log_statistics(staged, options)
        with self._only_this_command():
            statistics.check_rows(self._sources)
            self._splits(statistics)
            description = self._old_description()
            sizes = check_reuse(description, options) if options.dictionary else []
        state = {"staged": [asdict(file) for file in staged]}
        with self._progress("pass 1, dictionaries", 0):
            chunks = staged_rows(self._session, self._targets())
            value_counts = self._stage("value_counts")
            stage_value_counts(chunks, row_offsets(staged), value_counts, self._options)
            offsets = list[int]()
            old = old_ids(self._session, options) if options.dictionary else None
            if options.append_day or not options.dictionary:
                offsets = stage_new_ids(
                    self._session, value_counts, self._stage("ranked"), old, options
                )
            known = table_statistics(self._session, value_counts, old, options)
        statistics.distinct = [table.distinct for table in known]
        statistics.unknown = [table.unknown for table in known]
        sizes = sizes or options.first_sizes
        statistics.vocab_sizes = [size + table.kept for size, table in zip_strict(sizes, known)]
        if old is not None and options.append_day:
            with self._only_this_command():
                statistics.earlier_days = counted_days(description)
                check_new_day(statistics, options)
                for table, first in first_ids(old).items():
                    check_first_id(first, table, options)
        state |= {
            "offsets": offsets,
            "tables": [asdict(table) for table in known],
            "statistics": asdict(statistics),
        }
        return self._save(state)

    @contextlib.contextmanager
    def _only_this_command(self) -> Iterator[None]:
        """Discards the run after an error that another command avoids; it could not go on here."""
        try:
            yield
        except (ValueError, OSError):
            self._files.store(self._output).remove(WORK)
            raise

    def _targets(self) -> list[str]:
        return [self._stage(f"rows/{number}") for number in range(len(self._sources))]

    def _parse(self, state: dict[str, Any]) -> list[StagedFile]:
        """Stages all files, several at a time; the journal records each finished one."""
        done: dict[str, Any] = dict(state.get("files", {}))
        left = [n for n in range(len(self._sources)) if str(n) not in done]
        if left:
            left.sort(key=lambda number: -self._sizes[number])
        guard = threading.Lock()
        conversion = self._columns.conversion() if self._columns else None
        with self._progress("pass 1, text", sum(self._sizes)) as display:

            def stage(number: int) -> None:
                target = self._targets()[number]
                found = stage_file(
                    self._session, self._sources[number], number, target, self._options, conversion
                )
                with guard:
                    done[str(number)] = asdict(found)
                    self._journal.save({"files": done})
                    rows = sum(sum(file["rows"]) for file in done.values())
                    display.advance(sum(self._sizes[int(n)] for n in done), rows)

            width = max(1, self._session.sparkContext.defaultParallelism)
            with ThreadPoolExecutor(width) as pool:
                for outcome in [pool.submit(stage, number) for number in left]:
                    outcome.result()
        return [StagedFile(**done[str(number)]) for number in range(len(self._sources))]

    def _splits(self, statistics: LogStatistics) -> list[RowRange] | None:
        if self._options.split.by_row:
            return None
        return self._options.split.parts(statistics.rows_by_file, self._names)

    def _old_description(self) -> dict[str, Any]:
        """Reads `records.json` of the earlier result whose ids are used; {} without one."""
        if not self._options.dictionary:
            return {}
        text = self._files.store(self._options.dictionary).read(RECORDS)
        if text is None:
            raise FileNotFoundError(
                f"{self._options.dictionary_flag}: expected {RECORDS} in the folder, found none;"
                " give the output folder of an earlier run"
            )
        return dict(json.loads(text))

    def write(self, state: dict[str, Any]) -> dict[str, Any]:
        """Writes dictionaries and data files; returns the state before publishing.

        Args:
            state: The state that `build_vocabulary` returned.
        """
        if "sums" in state:
            return state
        options = self._options
        statistics = LogStatistics(**state["statistics"])
        known = [TableStatistics(**table) for table in state["tables"]]
        staged = [StagedFile(**file) for file in state["staged"]]
        dictionary = self._dictionary(state["offsets"], known, statistics.vocab_sizes)
        chunks = staged_rows(self._session, self._targets())
        assignment = BucketAssignment(
            row_offsets(staged), self._splits(statistics), statistics.rows, options
        )
        with self._progress("pass 2, ids", statistics.rows):
            buckets = count_buckets(chunks, assignment)
            samples = buckets.samples(options.split.names)
            check_training(samples, options.split.by)
            self._write_dictionary(dictionary, statistics.vocab_sizes)
            done = read_markers(self._files, self._work)
            left = set(buckets.rows) - set(done)
            if left:
                made = records(
                    self._session, chunks, assignment.arguments(done), dictionary, options
                )
                packed = packing(options, statistics.vocab_sizes)
                write_buckets(
                    self._session, self._files, self._work, made, buckets, options, packed
                )
            sums = join_buckets(self._files, self._work, buckets, options)
        return self._save({
            "sums": sums,
            "description": describe(self._names, options, statistics, samples),
        })  # fmt: skip

    def _dictionary(
        self, offsets: list[int], known: list[TableStatistics], vocab_sizes: list[int]
    ) -> DataFrame:
        options, ranked = self._options, self._stage("ranked")
        if not options.dictionary:
            return new_ids(self._session, ranked, offsets, known, vocab_sizes)
        old = old_ids(self._session, options)
        if not options.append_day:
            return old
        fresh = new_ids(self._session, ranked, offsets, known, vocab_sizes)
        return grown_ids(old, self._stage("value_counts"), fresh)

    def _write_dictionary(self, dictionary: DataFrame, vocab_sizes: list[int]) -> None:
        texts = self._columns.texts() if self._columns else {}
        store = self._files.store(self._output)
        if isinstance(store, LocalStore):
            dictionary.write.mode("overwrite").parquet(self._stage("numbered"))
            write_locally(store.folder / WORK, texts, vocab_sizes, self._options)
        else:
            write_remotely(dictionary, self._stage, texts, self._options.dictionary_tables)
