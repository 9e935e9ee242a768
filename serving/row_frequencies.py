"""How often each row is used: counted in training data, or taken from preprocess' dictionaries.

A file of counts is a safetensors file with `counts` int64 [K], by key, and `vocab_sizes` int64
[tables], by which it is recognised. Which rows are then kept in memory is not its concern.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.safetensors_file import write_tensors
from dlrm.data.batch import Ids
from dlrm.data.decode import check_ids
from dlrm.data.split_files import SplitSource
from dlrm.distributed.sharding import key_offsets
from dlrm.formats import atomic_files
from dlrm.formats.bags import Bags, ids_of_tables
from serving.artifact import map_tensors

COUNTS, VOCAB_SIZES = "counts", "vocab_sizes"
BLOCK_SAMPLES = 1 << 18

Counts = NDArray[np.int64]


def count_samples(folder: Path) -> tuple[Counts, tuple[int, ...]]:
    """Counts the ids of a split folder, with all cores; holds two blocks of samples at a time.

    Returns:
        The number of samples with each key, int64 [K], and the sizes of the tables.

    Raises:
        ValueError: The folder is malformed, or an id is outside its table.
        OSError: A file cannot be read.
    """
    source = SplitSource(folder)
    first_keys = np.append(key_offsets(source.vocab_sizes), sum(source.vocab_sizes))
    counts = np.zeros(first_keys[-1], np.int64)
    add = _adder()
    cores = len(os.sched_getaffinity(0))
    groups = np.array_split(np.arange(len(source.vocab_sizes)), cores)

    def read(start: int) -> Ids:
        return source.read_ids(start, min(start + BLOCK_SAMPLES, source.num_samples))

    starts = range(0, source.num_samples, BLOCK_SAMPLES)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(cores) as pool:
        ahead = reader.submit(read, 0)
        for start in starts:
            ids = ahead.result()
            ahead = reader.submit(read, min(start + BLOCK_SAMPLES, starts[-1]))
            # Tables have no keys in common, so each thread adds to counts of its own.
            parts = [(ids, first_keys, group) for group in groups]
            if isinstance(ids, Bags):
                parts = [
                    (found.reshape(-1, 1), first_keys[table:], groups[0][:1])
                    for table, found in enumerate(ids_of_tables(ids))
                ]
            if max(pool.map(lambda part: add(*part, counts), parts)):  # an id is bad
                check_ids(folder, start, ids, source.vocab_sizes)
    return counts, source.vocab_sizes


def _adder() -> Callable[..., bool]:
    """The compiled loop that counts the ids of some tables."""
    import numba

    @numba.njit(nogil=True)
    def add(ids: Any, first_keys: Any, tables: Any, counts: Any) -> bool:
        bad = False
        for sample in range(len(ids)):
            for table in tables:
                key = first_keys[table] + ids[sample, table]
                if first_keys[table] <= key < first_keys[table + 1]:
                    counts[key] += 1
                else:
                    bad = True
        return bad

    return add


def count_dictionary(folder: Path) -> tuple[Counts, tuple[int, ...]]:
    """Takes the counts that preprocess' dictionaries keep; the logs need not be there.

    The rows of the logs that no value of a table accounts for are those of id 0.

    Args:
        folder: An output folder of preprocess.

    Returns:
        The number of rows of the logs with each key, int64 [K], and the sizes of the tables.

    Raises:
        ValueError: A file is malformed, or does not fit the others.
        OSError: A file cannot be read.
    """
    from preprocess.dictionary_files import read_description, read_table
    from serving.dictionary import vocabulary

    description = read_description(folder)
    sizes = vocabulary(folder, description)
    rows = sum(description.get("rows_by_file") or [])
    counts = np.zeros(sum(sizes), np.int64)
    for table, (first_key, size) in enumerate(zip(key_offsets(sizes), sizes)):
        ids = read_table(folder, table, size)
        begin = first_key + ids.first_id
        counts[begin : begin + len(ids.counts)] = ids.counts
        counts[first_key] += max(0, rows - int(ids.counts.sum()))
    return counts, sizes


def summary(counts: Counts) -> str:
    """One line: how many rows are used, and which share of the uses falls on the most used."""
    falling = np.sort(counts)[::-1]
    uses = int(falling.sum())
    tenth = int(falling[: -(-len(falling) // 10)].sum()) / uses if uses else 0.0
    used = int(np.count_nonzero(counts))
    return f"{uses:,} uses of {used:,} of {len(counts):,} rows, {tenth:.1%} of a tenth of the rows"


def write_counts(path: Path, counts: Counts, vocab_sizes: tuple[int, ...]) -> None:
    """Writes a file of counts, complete or not at all."""
    tensors = {VOCAB_SIZES: np.array(vocab_sizes, "<i8"), COUNTS: counts}
    with atomic_files.whole_file(path) as unfinished:
        write_tensors(unfinished, tensors)


def read_counts(path: Path, vocab_sizes: tuple[int, ...]) -> Counts:
    """Maps a file of counts.

    Args:
        path: The file.
        vocab_sizes: The sizes of the tables that the counts must be of.

    Raises:
        ValueError: The file holds no counts, or those of other tables.
        OSError: The file cannot be read.
    """
    remedy = "make it with `python3 -m serving count` from the data of this model"
    try:
        tensors = map_tensors(path, remedy)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; {remedy}") from None
    if tensors.keys() != {COUNTS, VOCAB_SIZES}:
        raise ValueError(f"{path}: expected counts of rows, found {sorted(tensors)}; {remedy}")
    sizes, counts = tensors[VOCAB_SIZES], tensors[COUNTS]
    found = tuple(sizes.tolist())
    if found != vocab_sizes:
        differing = [t for t, (a, b) in enumerate(zip(vocab_sizes, found)) if a != b]
        where = f"table {differing[0]}" if differing else "the number of tables"
        expected, other = (
            (vocab_sizes[differing[0]], found[differing[0]])
            if differing
            else (len(vocab_sizes), len(found))
        )
        raise ValueError(f"{path}: {where}: expected {expected:,}, found {other:,}; {remedy}")
    if counts.dtype != np.int64 or counts.shape != (sum(vocab_sizes),) or counts.min() < 0:
        raise ValueError(
            f"{path}: expected {sum(vocab_sizes):,} counts of 0 or more, found others; {remedy}"
        )
    return counts
