"""Pass two: final ids, and each row to the file of its split.

It reads the parts of pass one and appends to the outputs. A part is removed when what was made of
it is on disk, so that the disk never holds more than the result and the parts to come. Rows that
shall be shuffled are first dealt to buckets by the leading bits of their key, and each bucket is
sorted in memory.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from preprocess.engine_polars.vocabulary import RECORD_TYPE, Save, record_columns, rows_file
from preprocess.files import write_all
from preprocess.options import Options
from preprocess.outputs import OutputFile, output_files
from preprocess.progress import PassProgress
from preprocess.rules import shuffle_key
from preprocess.splits import NAMES, TRAIN, RowRange

_COPY_ROWS = 32768
_DEAL_ROWS = 1 << 18  # so that a bucket's share of them is worth a write
_BUCKET_BYTES = 256 << 20

Int32 = NDArray[np.int32]
Pack = Callable[[Int32], Int32]


@dataclass
class WriteProgress:
    """How far pass two is; the journal keeps all of it.

    Attributes:
        parts: Parts of pass one that are done.
        buckets: Buckets that are done.
        bits: Leading bits of a key that name its bucket.
        sizes: Bytes of each bucket.
        sums: Bytes and CRC-32 of each output.
        samples: Rows of each split so far.
    """

    parts: int = 0
    buckets: int = 0
    bits: int = 0
    sizes: list[int] = field(default_factory=list)
    sums: dict[str, tuple[int, int]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WritePlan:
    """What pass two is to do.

    Attributes:
        work: Folder of the parts and of the outputs.
        options: What to make of the rows.
        parts: Rows of each part of pass one.
        splits: Ranges of rows; None where each row's tag tells.
        ids: By table, final id of each provisional id, the last one the missing value's; None
            where provisional ids are final.
        pack: Packs ids [rows, tables] into words [rows, words].
    """

    work: Path
    options: Options
    parts: Sequence[int]
    splits: Sequence[RowRange] | None
    ids: Sequence[Int32 | None]
    pack: Pack | None

    @property
    def train_rows(self) -> int:
        """At most so many rows train."""
        if self.splits is None:
            return sum(self.parts)
        return sum(part.stop - part.start for part in self.splits if part.name == TRAIN)


class _Outputs:
    """The data files, cut back to what the journal knows of and appended to from there."""

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
        """Appends final records [rows, width] to a split."""
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
        """Waits until all is on disk."""
        for files in self._files.values():
            for _, file in files:
                os.fsync(file.fileno())

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
        plan: What to do.
        state: What the journal has of pass two; empty at first.
        save: Makes a state of pass two durable.
        display: Shows the pass, in rows.
    """
    written = WriteProgress(**state)
    if not state and plan.options.shuffle is not None:
        width = plan.options.width * RECORD_TYPE.itemsize
        # At least one, so that no shift is by the whole width of a key.
        written.bits = max(1, (plan.train_rows * width // _BUCKET_BYTES).bit_length())
        written.sizes = [0] * (1 << written.bits)
    outputs = _Outputs(plan, written)
    saver = _BackgroundSaver(save)
    try:
        done = sum(plan.parts[: written.parts])
        for part in range(written.parts, len(plan.parts)):
            for records in _final_records(plan, part):
                _deal(plan, written, outputs, done, records)
                done += len(records)
                display.advance(done, done)
            written.parts += 1
            saver.save(
                outputs.sync, _bucket_files(plan, written), written, [rows_file(plan.work, part)]
            )
        for bucket in range(written.buckets, len(written.sizes)):
            path = _bucket_file(plan, bucket)
            if written.sizes[bucket]:
                saver.wait()
                outputs.append(TRAIN, _sorted_bucket(plan, path))
            written.buckets += 1
            saver.save(outputs.sync, [], written, [path])
    finally:
        saver.close()
        outputs.close()
    return written


class _BackgroundSaver:
    """Makes what was written durable, then the journal, then removes what is needed no more."""

    def __init__(self, save: Save) -> None:
        self._save = save
        self._thread = ThreadPoolExecutor(1, "saver")
        self._last: Future[None] | None = None

    def save(
        self,
        sync: Callable[[], None],
        others: Sequence[Path],
        written: WriteProgress,
        needless: Sequence[Path],
    ) -> None:
        """Does so in the background, for the state as it is now."""
        self.wait()
        # A snapshot: what is appended meanwhile is cut off again if this state is resumed.
        state = {
            **vars(written),
            "sizes": list(written.sizes),
            "sums": dict(written.sums),
            "samples": dict(written.samples),
        }

        def work() -> None:
            sync()
            for path in others:
                _sync(path)
            self._save(state)
            for path in needless:
                path.unlink(missing_ok=True)

        self._last = self._thread.submit(work)

    def wait(self) -> None:
        """Waits for what is under way; what it went wrong with is raised here."""
        if self._last:
            last, self._last = self._last, None
            last.result()

    def close(self) -> None:
        """Waits for all."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def _bytes(values: Int32) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _final_records(plan: WritePlan, part: int) -> Iterator[Int32]:
    """Records of a part with their final ids, and perhaps the tag at the end."""
    columns = record_columns(plan.options)
    rows = _COPY_ROWS if plan.options.shuffle is None else _DEAL_ROWS
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


def _deal(
    plan: WritePlan, written: WriteProgress, outputs: _Outputs, first: int, records: Int32
) -> None:
    """Sends consecutive rows, the first of which has number `first`, to their splits."""
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
    """Appends rows, each behind its key, to their buckets."""
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
            # A killed run may have left more than the journal knows of.
            file.truncate(written.sizes[bucket])
            file.seek(written.sizes[bucket])
            write_all(file, data)
        written.sizes[bucket] += len(data)


def _sorted_bucket(plan: WritePlan, path: Path) -> Int32:
    keyed = np.fromfile(path, RECORD_TYPE).reshape(-1, 2 + plan.options.width)
    keys = np.ascontiguousarray(keyed[:, :2]).view("<u8")[:, 0]
    return keyed[np.argsort(keys), 2:]
