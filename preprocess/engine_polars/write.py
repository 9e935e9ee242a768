"""Pass two replaces provisional ids by final ones and writes each row to the files of its split.

It reads the parts of pass one and appends to the outputs. A part is removed when its rows are on
disk in their final form, so that the disk never holds more than the result and the remaining parts.
Rows to be shuffled are first scattered to buckets by the leading bits of their key; then each
bucket is sorted in memory.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files
from preprocess.engine_polars.background_saver import BackgroundSaver
from preprocess.engine_polars.vocabulary import RECORD_TYPE, record_columns, rows_file
from preprocess.files import write_all
from preprocess.options import Options
from preprocess.outputs import OutputFile, Save, output_files
from preprocess.progress import PassProgress
from preprocess.rules import shuffle_key
from preprocess.splits import NAMES, TRAIN, RowRange

_COPY_ROWS = 32768
_SCATTER_ROWS = 1 << 18  # enough that each bucket gets many of them in one write
_BUCKET_BYTES = 256 << 20

Int32 = NDArray[np.int32]
Pack = Callable[[Int32], Int32]


@dataclass
class WriteProgress:
    """The progress of pass two; the journal keeps all of it.

    Attributes:
        parts: The number of parts of pass one that are done.
        buckets: The number of buckets that are done.
        bits: The number of leading bits of a key that are the index of its bucket.
        sizes: The size of each bucket in bytes.
        sums: The size in bytes and the CRC-32 of each output, by name.
        samples: The number of rows of each split so far.
    """

    parts: int = 0
    buckets: int = 0
    bits: int = 0
    sizes: list[int] = field(default_factory=list)
    sums: dict[str, tuple[int, int]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)

    def snapshot(self) -> dict[str, Any]:
        """Returns a copy for the journal, which does not change while writing goes on."""
        return {
            **vars(self),
            "sizes": list(self.sizes),
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


class _Outputs:
    """The data files, truncated to the sizes in the journal and open for appending."""

    def __init__(self, plan: WritePlan, written: WriteProgress) -> None:
        self._plan = plan
        self._written = written
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

    def append(self, split: str, records: Int32) -> None:
        """Appends final records, int32 [rows, width], to a split."""
        self._written.samples[split] += len(records)
        for output, file in self._files[split]:
            values = records[:, output.start : output.stop]
            if output.packed:
                assert self._plan.pack
                values = self._plan.pack(np.ascontiguousarray(values))
            data = _bytes(np.ascontiguousarray(values, RECORD_TYPE))
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


def write(
    plan: WritePlan, state: Mapping[str, Any], save: Save, display: PassProgress
) -> WriteProgress:
    """Writes the data files into the work folder.

    Args:
        plan: The input.
        state: The state of pass two that the journal has; empty at first.
        save: Saves a state of pass two durably.
        display: Shows the progress, in rows.
    """
    written = WriteProgress(**state)
    if not state and plan.options.shuffle is not None:
        width = plan.options.width * RECORD_TYPE.itemsize
        # At least one, because a shift by the whole width of a key is undefined.
        written.bits = max(1, (plan.train_rows * width // _BUCKET_BYTES).bit_length())
        written.sizes = [0] * (1 << written.bits)
    outputs = _Outputs(plan, written)
    saver = BackgroundSaver(save)
    try:
        done = sum(plan.parts[: written.parts])
        for part in range(written.parts, len(plan.parts)):
            for records in _final_records(plan, part):
                _distribute(plan, written, outputs, done, records)
                done += len(records)
                display.advance(done, done)
            written.parts += 1
            saver.save(
                written.snapshot(),
                outputs.sync,
                _bucket_files(plan, written),
                [rows_file(plan.work, part)],
            )
        for bucket in range(written.buckets, len(written.sizes)):
            path = _bucket_file(plan, bucket)
            if written.sizes[bucket]:
                saver.wait()
                outputs.append(TRAIN, _sorted_bucket(plan, path))
            written.buckets += 1
            saver.save(written.snapshot(), outputs.sync, [], [path])
    finally:
        saver.close()
        outputs.close()
    return written


def _bytes(values: Int32) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _final_records(plan: WritePlan, part: int) -> Iterator[Int32]:
    """Yields the records of a part with their final ids, int32 [rows, columns]."""
    columns = record_columns(plan.options)
    rows = _COPY_ROWS if plan.options.shuffle is None else _SCATTER_ROWS
    with open(rows_file(plan.work, part), "rb", buffering=0) as file:
        left = plan.parts[part]
        while left:
            records = np.fromfile(file, RECORD_TYPE, min(rows, left) * columns)
            assert records.size, "provisional records end early"
            records = records.reshape(-1, columns)
            for column, ids in enumerate(plan.ids, 1 + plan.options.num_dense):
                if ids is not None:
                    records[:, column] = ids.take(records[:, column])
            left -= len(records)
            yield records


def _distribute(
    plan: WritePlan, written: WriteProgress, outputs: _Outputs, first: int, records: Int32
) -> None:
    """Writes consecutive rows, the first one with number `first`, to their splits or buckets."""
    for split, rows in _splits(plan, first, records):
        final = records[rows, : plan.options.width]
        if split == TRAIN and plan.options.shuffle is not None:
            numbers = np.arange(first, first + len(records), dtype=np.uint64)[rows]
            _scatter(plan, written, shuffle_key(plan.options.shuffle, numbers), final)
        else:
            outputs.append(split, final)


def _splits(
    plan: WritePlan, first: int, records: Int32
) -> Iterator[tuple[str, slice | NDArray[np.intp]]]:
    """Yields each split with the indices of its rows in `records`."""
    if plan.splits is None:
        for tag, name in enumerate(NAMES):
            rows = np.flatnonzero(records[:, -1] == tag)
            if len(rows):
                yield name, rows
        return
    for part in plan.splits:
        start, stop = max(part.start - first, 0), min(part.stop - first, len(records))
        if start < stop:
            yield part.name, slice(start, stop)


def _bucket_file(plan: WritePlan, bucket: int) -> Path:
    return plan.work / f"bucket-{bucket:05}.bin"


def _bucket_files(plan: WritePlan, written: WriteProgress) -> list[Path]:
    return [_bucket_file(plan, bucket) for bucket, size in enumerate(written.sizes) if size]


def _scatter(
    plan: WritePlan, written: WriteProgress, keys: NDArray[np.uint64], records: Int32
) -> None:
    """Appends rows, each preceded by its key, to the files of their buckets.

    Args:
        plan: The input.
        written: The progress, whose bucket sizes are updated.
        keys: The shuffle keys, uint64 [rows].
        records: The final records, int32 [rows, width].
    """
    buckets = (keys >> np.uint64(64 - written.bits)).astype(np.intp)
    order = np.argsort(buckets, kind="stable")
    keyed = np.empty((len(records), 2 + records.shape[1]), RECORD_TYPE)
    keyed[:, :2] = keys[order].astype("<u8").view(RECORD_TYPE).reshape(-1, 2)
    keyed[:, 2:] = records[order]
    ends = np.cumsum(np.bincount(buckets, minlength=len(written.sizes))).tolist()
    for bucket, (start, stop) in enumerate(zip([0, *ends], ends)):
        if start == stop:
            continue
        data = _bytes(keyed[start:stop])
        with FileIO(os.open(_bucket_file(plan, bucket), os.O_RDWR | os.O_CREAT), "r+") as file:
            # A killed run may have written more than the journal has recorded.
            file.truncate(written.sizes[bucket])
            file.seek(written.sizes[bucket])
            write_all(file, data)
        written.sizes[bucket] += len(data)


def _sorted_bucket(plan: WritePlan, path: Path) -> Int32:
    """Returns the records of a bucket in the order of their keys, int32 [rows, width]."""
    keyed = np.fromfile(path, RECORD_TYPE).reshape(-1, 2 + plan.options.width)
    keys = np.ascontiguousarray(keyed[:, :2]).view("<u8")[:, 0]
    return keyed[np.argsort(keys), 2:]
