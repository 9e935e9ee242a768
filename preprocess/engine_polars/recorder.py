"""Gives the values of parsed rows provisional ids, and writes them to the files of pass one.

Provisional ids follow first appearance, so that they depend on the rows alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files
from dlrm.formats.zip_strict import zip_strict
from preprocess.engine_polars.bag_words import BagWords
from preprocess.engine_polars.blocks import ResumePoint
from preprocess.engine_polars.first_pass import (
    RECORD_TYPE,
    FirstPass,
    rows_file,
    values_file,
    words_file,
)
from preprocess.engine_polars.parser import ParsedRows
from preprocess.files import write_all
from preprocess.options import Options
from preprocess.outputs import Save

_ENCODERS = min(os.cpu_count() or 1, 8)  # more would wait for the thread with the largest table


class Recorder:
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
        self._layout = BagWords(options)
        self._files = self._new_files(len(first_pass.parts))

    def _new_files(self, part: int) -> list[FileIO]:
        """Opens the files of a part: its records and, if there are bags, their words."""
        paths = [rows_file(self._work, part)]
        if len(self._layout):
            paths.append(words_file(self._work, part))
        return [FileIO(path, "wb") for path in paths]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self._encoder.shutdown()
        self._tables.shutdown()
        self._saver.shutdown()
        for file in self._files:
            file.close()
        if not any(error) and self._saving:
            self._saving.result()

    def add(self, rows: ParsedRows) -> None:
        """Encodes rows in the background; raises the error of the previous ones, if any."""
        self._settle()
        self._first_pass.statistics.rows_by_file[rows.file] += rows.columns.shape[1]
        self._rows += rows.columns.shape[1]
        self._encoding = self._encoder.submit(self._record, rows, self._files)

    def _record(self, rows: ParsedRows, files: Sequence[FileIO]) -> None:
        records = _encode(rows, self._options, self._first_pass, self._tables)
        if not len(records):
            return
        write_all(files[0], records)
        if rows.bags:
            write_all(files[1], self._layout.join(records, rows.bags))

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
            self._save_part, self._files, values_file(self._work, part), values, first_pass.state()
        )
        self._rows = self._text = 0
        self._files = self._new_files(part + 1)

    def _settle(self) -> None:
        if self._encoding:
            self._encoding.result()
            self._encoding = None

    def _save_part(
        self,
        files: Sequence[FileIO],
        path: Path,
        values: NDArray[np.uint32],
        state: Mapping[str, Any],
    ) -> None:
        for file in files:
            with file:
                atomic_files.sync(file.fileno(), str(file.name))
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
    for bag, count in enumerate(batch.shortened_bags):
        statistics.shortened_bags[bag] += count
    values = columns.view(np.uint32)[1 + options.num_dense :]

    def encode(table: int) -> None:
        if table in rules.hashed:
            # A missing value is 0 here.
            ids = values[table]
            if table >= options.num_single:
                ids = batch.bags[table - options.num_single][:, 0].view(np.uint32)
            ids %= np.uint32(rules.modulus(table) or 0)
            return
        if table >= options.num_single:
            words = batch.bags[table - options.num_single]
            ids = np.ascontiguousarray(words[:, 0]).view(np.uint32)
            first_pass.dictionaries[table].encode(ids, None, rules.modulus(table))
            words[:, 0] = ids.view(np.int32)
            return
        absent = None if rules.missing_is_value else batch.missing[:, table]
        first_pass.dictionaries[table].encode(values[table], absent, rules.modulus(table))

    # Tables share nothing, and the loops let go of the interpreter lock.
    list(tables.map(encode, range(options.num_categorical)))
    return np.ascontiguousarray(columns.T, RECORD_TYPE)
