"""Splits a record file into column files, `metadata.json` and `checksums.json`.

Bytes are copied unchanged; the types only say how the checks and the reader understand them. What a
record is and which values it may hold is defined in `dlrm.formats.records`. This module moves
bytes, independent of the command line.
"""

from __future__ import annotations

import contextlib
import os
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Callable

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files, file_names
from dlrm.formats.checksums import RunningSum, remove_checksums, write_checksums
from dlrm.formats.metadata import Metadata, write_metadata
from dlrm.formats.packed_ids import Packing, plan
from dlrm.formats.records import VALUE_BYTES, RecordChecker, RecordLayout

# A block and its three copies stay in the second-level cache between reading and writing, which is
# worth more than fewer system calls.
_BLOCK_BYTES = 1 << 20

# Blocks handed to the checksum thread at once. One wakes the thread too often, more leave the
# shared cache.
_GROUP_BLOCKS = 4

Advance = Callable[[int], None]


def split(
    input_file: Path,
    folder: Path,
    layout: RecordLayout,
    advance: Advance | None = None,
    *,
    pack_ids: bool = False,
) -> tuple[Metadata, int]:
    """Writes `label.bin`, `dense.bin`, `category.bin` and their descriptions into `folder`.

    The column files get their final names only when all are complete and on disk; `metadata.json`
    and then `checksums.json` come last. A failure removes what was written.

    Args:
        input_file: The record file.
        folder: The folder to write; created if missing.
        layout: The columns of a record.
        advance: Called after each block with its number of bytes in the record file.
        pack_ids: Whether to pack the ids in `category.bin`.

    Returns:
        The metadata written, and the number of samples.

    Raises:
        ValueError: The file's size or a value in it is wrong.
        OSError: Reading or writing failed.
    """
    samples = _count_records(input_file, layout)
    packing = _plan(layout) if pack_ids else None
    finals = [folder / name for name in file_names.COLUMN_FILES]
    for final in finals:
        if final.exists() and final.samefile(input_file):
            raise ValueError(f"{input_file}: is also an output of the split; choose another OUTDIR")
    folder.mkdir(parents=True, exist_ok=True)
    checker = RecordChecker(input_file, layout)
    with atomic_files.whole_files(finals, lambda: _remove_descriptions(folder)) as temporaries:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(FileIO(input_file))
            outputs = [stack.enter_context(FileIO(path, "w")) for path in temporaries]
            sums = _split_blocks(source, outputs, samples, layout, checker, packing, advance)
        description = Metadata(
            vocab_sizes=checker.vocab_sizes,
            label_raw_type=layout.label_type,
            dense_raw_type=layout.dense_type,
            category_raw_type="int32",
            dense_log=layout.dense_log,
            num_dense=layout.num_dense,
            dense_log_offset=layout.dense_log_offset,
            packed_ids=packing,
        )
    write_metadata(folder, description)
    write_checksums(folder, {path.name: s.value for path, s in zip(finals, sums)})
    return description, samples


def _remove_descriptions(folder: Path) -> None:
    """Removes older descriptions, which must not survive next to newer columns."""
    remove_checksums(folder)
    (folder / file_names.METADATA).unlink(missing_ok=True)
    atomic_files.sync_directory(folder)


def _plan(layout: RecordLayout) -> Packing:
    if layout.vocab_sizes is None:
        raise ValueError(
            "--pack_ids: expected the vocabulary sizes before the first record, found neither "
            "--slot_size_array nor a records.json; give --slot_size_array"
        )
    return plan(layout.vocab_sizes)


def _count_records(path: Path, layout: RecordLayout) -> int:
    """The number of records in a file.

    Raises:
        ValueError: It is no regular file, is empty, or does not hold whole records.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: expected a record file, found something else than a file")
    samples, rest = divmod(status.st_size, layout.record_bytes)
    if rest or not samples:
        found = f"{samples} records and {rest} bytes" if rest else "an empty file"
        raise ValueError(
            f"{path}: expected whole records of {layout.record_bytes} bytes (1 label, "
            f"{layout.num_dense} dense, {layout.num_categorical} categorical columns), found "
            f"{found}; correct --num_dense and --num_categorical, or copy the file again"
        )
    return samples


def _split_blocks(
    source: FileIO,
    outputs: list[FileIO],
    samples: int,
    layout: RecordLayout,
    checker: RecordChecker,
    packing: Packing | None,
    advance: Advance | None,
) -> list[RunningSum]:
    """Copies and checks every record, block by block in one set of reused buffers.

    A second thread computes the checksums, a group of blocks at a time, from one of two sets of
    column buffers while this thread fills the other.

    Returns:
        The checksum of each output.
    """
    block = max(1, _BLOCK_BYTES // layout.record_bytes)
    group = _GROUP_BLOCKS * block
    widths = (1, layout.num_dense, layout.num_categorical)
    # Each part of a record is one opaque item: NumPy then copies it whole, not value by value.
    items = [f"V{VALUE_BYTES * width}" for width in widths]
    records = np.empty(block, np.dtype([(str(part), item) for part, item in enumerate(items)]))
    if packing is not None:
        unpacked = np.empty((block, layout.num_categorical), np.int32)
        widths = (1, layout.num_dense, packing.words)
    buffers = [[np.empty((group, width), np.int32) for width in widths] for _ in range(2)]
    sums = [RunningSum() for _ in outputs]
    summing: Future[None] | None = None
    os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    with ThreadPoolExecutor(1, thread_name_prefix="checksum") as summer:
        for first in range(0, samples, group):
            columns = [buffer[: samples - first] for buffer in buffers[first // group % 2]]
            for start in range(0, len(columns[0]), block):
                labels, dense, category = (column[start : start + block] for column in columns)
                count = len(labels)
                ids = category if packing is None else unpacked[:count]
                _read_full(source, records[:count].view(np.uint8).data)
                for part, column in enumerate((labels, dense, ids)):
                    column.view(items[part])[:, 0] = records[str(part)][:count]
                checker.check(first + start, labels[:, 0], dense, ids)
                if packing is not None:
                    packing.pack(ids, category)
                for output, column in zip(outputs, (labels, dense, category)):
                    _write_full(output, _bytes(column))
                if advance is not None:
                    advance(count * layout.record_bytes)
            if summing is not None:
                summing.result()  # before the buffers it reads are filled anew
            summing = summer.submit(_add, sums, columns)
        assert summing is not None
        summing.result()
    return sums


def _add(sums: list[RunningSum], columns: list[NDArray[np.int32]]) -> None:
    """Adds each column's values to its checksum."""
    for running, column in zip(sums, columns):
        running.update(_bytes(column))


def _bytes(values: NDArray[np.int32]) -> memoryview:
    """The bytes of an array, without a copy."""
    return values.reshape(-1).view(np.uint8).data


def _read_full(file: FileIO, view: memoryview) -> None:
    """Fills the view; a single read may return less."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise ValueError(
                f"{os.fspath(file.name)}: the file became shorter while it was read; run again "
                "when nothing writes to it"
            )
        done += count


def _write_full(file: FileIO, view: memoryview) -> None:
    """Writes the whole view; a single write may take less."""
    done = 0
    with atomic_files.naming(file.name):
        while done < len(view):
            done += file.write(view[done:]) or 0
