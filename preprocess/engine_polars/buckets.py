"""The buckets through which pass two shuffles training rows.

Rows are first scattered to buckets by the leading bits of their key; then each bucket is sorted in
memory. A bucket has a file of records, each preceded by its key, and with bags a file of words.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.engine_polars.bag_words import BagWords, Int32, StoredRows
from preprocess.engine_polars.first_pass import RECORD_TYPE, words_file
from preprocess.engine_polars.output_writers import WritePlan, WriteProgress
from preprocess.files import write_all

_BUCKET_BYTES = 256 << 20


def prepare_buckets(plan: WritePlan, written: WriteProgress) -> None:
    """Chooses the number of buckets before the first row is scattered."""
    size = plan.train_rows * plan.options.width * RECORD_TYPE.itemsize
    if plan.options.bags:
        parts = range(len(plan.parts))
        size += sum(words_file(plan.work, part).stat().st_size for part in parts)
    # At least one bit, because a shift by the whole width of a key is undefined.
    written.bits = max(1, (size // _BUCKET_BYTES).bit_length())
    written.sizes = [0] * (1 << written.bits)
    written.word_sizes = [0] * len(written.sizes) if plan.options.bags else []


def bucket_file(plan: WritePlan, bucket: int) -> Path:
    """Returns the path of a bucket's records."""
    return plan.work / f"bucket-{bucket:05}.bin"


def bucket_words_file(plan: WritePlan, bucket: int) -> Path:
    """Returns the path of the words of a bucket's bags."""
    return plan.work / f"bucket-words-{bucket:05}.bin"


def bucket_files(plan: WritePlan, written: WriteProgress) -> list[Path]:
    """Returns the paths of all files that buckets have."""
    records = [bucket_file(plan, bucket) for bucket, size in enumerate(written.sizes) if size]
    words = enumerate(written.word_sizes)
    return records + [bucket_words_file(plan, bucket) for bucket, size in words if size]


def scatter(
    plan: WritePlan, written: WriteProgress, keys: NDArray[np.uint64], rows: StoredRows
) -> None:
    """Appends rows, each record preceded by its key, to the files of their buckets.

    Args:
        plan: The input.
        written: The progress, whose bucket sizes are updated.
        keys: The shuffle keys, uint64 [rows].
        rows: The rows.
    """
    layout = BagWords(plan.options)
    buckets = (keys >> np.uint64(64 - written.bits)).astype(np.intp)
    order = np.argsort(buckets, kind="stable")
    records, words = layout.take(rows, order)
    keyed = np.empty((len(records), 2 + records.shape[1]), RECORD_TYPE)
    keyed[:, :2] = keys[order].astype("<u8").view(RECORD_TYPE).reshape(-1, 2)
    keyed[:, 2:] = records
    ends = np.cumsum(np.bincount(buckets, minlength=len(written.sizes)))
    _append(keyed, ends, written.sizes, lambda bucket: bucket_file(plan, bucket))
    if len(layout):
        word_ends = np.concatenate([[0], np.cumsum(layout.sizes(records))])[ends]
        _append(words, word_ends, written.word_sizes, lambda b: bucket_words_file(plan, b))


def _append(
    values: NDArray[Any],
    ends: NDArray[np.int64],
    sizes: list[int],
    path: Callable[[int], Path],
) -> None:
    """Appends values to the files of buckets.

    Args:
        values: The values of all buckets, one bucket behind the other.
        ends: The end of each bucket in `values`.
        sizes: The size of each bucket's file in bytes, which is updated.
        path: Returns the path of a bucket's file.
    """
    bounds = ends.tolist()
    for bucket, (start, stop) in enumerate(zip([0, *bounds], bounds)):
        if start == stop:
            continue
        data = values[start:stop].reshape(-1).view(np.uint8).data
        with FileIO(os.open(path(bucket), os.O_RDWR | os.O_CREAT), "r+") as file:
            # A killed run may have written more than the journal has recorded.
            file.truncate(sizes[bucket])
            file.seek(sizes[bucket])
            write_all(file, data)
        sizes[bucket] += len(data)


def sorted_bucket(plan: WritePlan, written: WriteProgress, bucket: int) -> StoredRows:
    """Returns the rows of a bucket in the order of their keys."""
    keyed = np.fromfile(bucket_file(plan, bucket), RECORD_TYPE)
    keyed = keyed.reshape(-1, 2 + plan.options.width)
    keys = np.ascontiguousarray(keyed[:, :2]).view("<u8")[:, 0]
    words: Int32 = np.zeros(0, RECORD_TYPE)
    if written.word_sizes and written.word_sizes[bucket]:
        words = np.fromfile(bucket_words_file(plan, bucket), RECORD_TYPE)
    return BagWords(plan.options).take(StoredRows(keyed[:, 2:], words), np.argsort(keys))
