"""The data files of a result while pass two writes them, and how far it has come.

This module must not know where rows come from.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files, file_names
from dlrm.formats.bag_files import OFFSET_TYPE
from preprocess.engine_polars.bag_words import BagWords, StoredRows
from preprocess.engine_polars.first_pass import RECORD_TYPE
from preprocess.files import write_all
from preprocess.options import Options
from preprocess.outputs import IDS, OFFSETS, WEIGHTS, OutputFile, output_files
from preprocess.splits import TRAIN, RowRange

Int32 = NDArray[np.int32]
Pack = Callable[[Int32], Int32]

_NO_IDS = np.zeros((0, 2), np.int32)


@dataclass
class WriteProgress:
    """The progress of pass two; the journal keeps all of it.

    Attributes:
        parts: The number of parts of pass one that are done.
        buckets: The number of buckets that are done.
        bits: The number of leading bits of a key that are the index of its bucket.
        sizes: The size of each bucket's records in bytes.
        word_sizes: The size of the words of each bucket's bags in bytes; empty without bags.
        sums: The size in bytes and the CRC-32 of each output, by name.
        samples: The number of rows of each split so far.
    """

    parts: int = 0
    buckets: int = 0
    bits: int = 0
    sizes: list[int] = field(default_factory=list)
    word_sizes: list[int] = field(default_factory=list)
    sums: dict[str, tuple[int, int]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)

    def snapshot(self) -> dict[str, Any]:
        """Returns a copy for the journal, which does not change while writing goes on."""
        return {
            **vars(self),
            "sizes": list(self.sizes),
            "word_sizes": list(self.word_sizes),
            "sums": dict(self.sums),
            "samples": dict(self.samples),
        }


@dataclass(frozen=True)
class WritePlan:
    """The input of pass two.

    Attributes:
        work: The folder of the parts and of the outputs.
        options: The options of the run.
        parts: The number of rows of each part of pass one.
        splits: The row ranges of the splits; None if each row has a tag.
        ids: For each table, the final id of each provisional id and, last, of a missing value;
            None if the provisional ids are final.
        pack: Packs ids [rows, tables] into words [rows, words]; None leaves them.
    """

    work: Path
    options: Options
    parts: Sequence[int]
    splits: Sequence[RowRange] | None
    ids: Sequence[Int32 | None]
    pack: Pack | None

    @property
    def train_rows(self) -> int:
        """An upper bound of the number of training rows."""
        if self.splits is None:
            return sum(self.parts)
        return sum(part.stop - part.start for part in self.splits if part.name == TRAIN)


class Outputs:
    """The data files, truncated to the sizes in the journal and open for appending."""

    def __init__(self, plan: WritePlan, written: WriteProgress) -> None:
        self._plan = plan
        self._written = written
        self._layout = BagWords(plan.options)
        self._files: dict[str, list[tuple[OutputFile, FileIO]]] = {}
        for split in plan.options.split.names:
            self._files[split] = []
            written.samples.setdefault(split, 0)
            for output in output_files(plan.options, split):
                path = plan.work / output.name
                path.parent.mkdir(parents=True, exist_ok=True)
                file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT), "r+")
                size, _ = written.sums.setdefault(output.name, (0, 0))
                file.truncate(size)
                file.seek(size)
                self._files[split].append((output, file))
                if output.content == OFFSETS and not size:
                    self._append(output, file, np.zeros(1, OFFSET_TYPE))

    def append(self, split: str, rows: StoredRows) -> None:
        """Appends rows, whose records are final and the ids of their bags provisional."""
        self._written.samples[split] += len(rows.records)
        bags = dict(zip(self._plan.options.bags, self._layout.cut(rows))) if rows.words.size else {}
        for output, file in self._files[split]:
            values = rows.records[:, output.start : output.stop]
            if output.bag:
                values = self._of_bag(output, values[:, 0], bags.get(output.bag, _NO_IDS))
            elif output.packed:
                assert self._plan.pack
                values = self._plan.pack(np.ascontiguousarray(values))
            self._append(output, file, values)

    def _of_bag(self, output: OutputFile, lengths: Int32, words: Int32) -> NDArray[Any]:
        """Returns what a file of a table with bags holds of some rows.

        Args:
            output: The file.
            lengths: The number of ids of each row, int32 [rows].
            words: The words of all these ids, int32 [ids, 1 or 2].
        """
        assert output.bag
        if output.content == IDS:
            ids = self._plan.ids[output.bag.table]
            return words[:, 0] if ids is None else ids.take(words[:, 0])
        if output.content == WEIGHTS:
            return words[:, 1]
        # The file of ids comes first, so that it has these ids already.
        size, _ = self._written.sums[f"{output.split}/{file_names.bag_ids(output.bag.table)}"]
        ends = np.cumsum(lengths, dtype=OFFSET_TYPE)
        return ends + (size // RECORD_TYPE.itemsize - len(words))

    def _append(self, output: OutputFile, file: FileIO, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        write_all(file, data)
        size, crc = self._written.sums[output.name]
        self._written.sums[output.name] = (size + len(data), zlib.crc32(data, crc))

    def sync(self) -> None:
        """Brings all files to the disk."""
        for files in self._files.values():
            for output, file in files:
                atomic_files.sync(file.fileno(), output.name)

    def close(self) -> None:
        """Closes the files."""
        for files in self._files.values():
            for _, file in files:
                file.close()
