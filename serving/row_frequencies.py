"""How often each row is used: counted in training data, or taken from preprocess' dictionaries.

A file of counts is a safetensors file with `counts` int64 [K], by key, and `vocab_sizes` int64
[tables], by which it is recognised. Of tables with too many ids for that, it has `keys` int64 [n],
ascending, and `counts` [n] of these alone. Which rows are then kept in memory is not its concern.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, NamedTuple

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

COUNTS, VOCAB_SIZES, KEYS = "counts", "vocab_sizes", "keys"
BLOCK_SAMPLES = 1 << 18
MOST_KEYS = 1 << 31  # that are all counted, in 16 GB

Counts = NDArray[np.int64]


class KeyCounts(NamedTuple):
    """How often keys are used.

    Attributes:
        counts: The number of uses of each key, int64 [K], or [n] of `keys`.
        vocab_sizes: Number of ids of each table.
        keys: The keys that are counted, int64 [n], ascending, all others being unused; None for all
            K of them.
    """

    counts: Counts
    vocab_sizes: tuple[int, ...]
    keys: NDArray[np.int64] | None = None

    def of_all(self) -> Counts:
        """The number of uses of each key, int64 [K]."""
        if self.keys is None:
            return self.counts
        counts = np.zeros(sum(self.vocab_sizes), np.int64)
        counts[self.keys] = self.counts
        return counts

    def of_ids(self, table: int, ids: NDArray[np.int32]) -> Counts:
        """The uses of all other ids of a table, and then of each of these, int64 [1 + n]."""
        first = int(key_offsets(self.vocab_sizes)[table])
        last = first + self.vocab_sizes[table]
        if self.keys is None:
            counts = self.counts[first:last]
            own = counts[ids]
        else:
            begin, end = np.searchsorted(self.keys, [first, last])
            counts, counted = self.counts[begin:end], self.keys[begin:end] - first
            own = np.zeros(len(ids), np.int64)
            places = np.searchsorted(ids, counted)
            known = np.append(ids, -1)[places] == counted
            own[places[known]] = counts[known]
        return np.concatenate([[counts.sum() - own.sum()], own])


def count_samples(folder: Path) -> KeyCounts:
    """Counts the ids of a split folder, with all cores; holds two blocks of samples at a time.

    Of more than `MOST_KEYS` keys, it holds those that occur.

    Raises:
        ValueError: The folder is malformed, or an id is outside its table.
        OSError: A file cannot be read.
    """
    source = SplitSource(folder)
    if sum(source.vocab_sizes) > MOST_KEYS:
        return _count_those_that_occur(folder, source)
    first_keys = np.append(key_offsets(source.vocab_sizes), sum(source.vocab_sizes))
    counts = np.zeros(first_keys[-1], np.int64)
    add = _adder()
    cores = len(os.sched_getaffinity(0))
    groups = np.array_split(np.arange(len(source.vocab_sizes)), cores)
    with ThreadPoolExecutor(cores) as pool:
        for start, ids in _blocks(source):
            # Tables have no keys in common, so each thread adds to counts of its own.
            parts = [(ids, first_keys, group) for group in groups]
            if isinstance(ids, Bags):
                parts = [
                    (found.reshape(-1, 1), first_keys[table:], groups[0][:1])
                    for table, found in enumerate(ids_of_tables(ids))
                ]
            if max(pool.map(lambda part: add(*part, counts), parts)):  # an id is bad
                check_ids(folder, start, ids, source.vocab_sizes)
    return KeyCounts(counts, source.vocab_sizes)


def _blocks(source: SplitSource) -> Iterator[tuple[int, Ids]]:
    """Yields the first sample of each block and the block's ids, while the next one is read."""

    def read(start: int) -> Ids:
        return source.read_ids(start, min(start + BLOCK_SAMPLES, source.num_samples))

    starts = range(0, source.num_samples, BLOCK_SAMPLES)
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, 0)
        for start in starts:
            ids = ahead.result()
            ahead = reader.submit(read, min(start + BLOCK_SAMPLES, starts[-1]))
            yield start, ids


def _count_those_that_occur(folder: Path, source: SplitSource) -> KeyCounts:
    tables = [_Sparse() for _ in source.vocab_sizes]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start, ids in _blocks(source):
            check_ids(folder, start, ids, source.vocab_sizes)
            of_tables = ids_of_tables(ids) if isinstance(ids, Bags) else ids.T
            list(pool.map(_Sparse.add, tables, of_tables))
    for table in tables:
        table.merge()
    offsets = key_offsets(source.vocab_sizes)
    keys = [table.ids + offset for table, offset in zip(tables, offsets)]
    counts = np.concatenate([table.counts for table in tables])
    return KeyCounts(counts, source.vocab_sizes, np.concatenate(keys))


class _Sparse:
    """Counts the ids of a table that occur; holds at most twice as many as there are, and a block.

    Attributes:
        ids: Those merged so far, int64 [n], ascending.
        counts: Their counts, int64 [n].
    """

    def __init__(self) -> None:
        self.ids: Counts = np.empty(0, np.int64)
        self.counts: Counts = np.empty(0, np.int64)
        self._parts: list[tuple[Any, Any]] = []
        self._held = 0

    def add(self, ids: NDArray[np.int32]) -> None:
        """Counts the ids of a block."""
        self._parts.append(np.unique(ids, return_counts=True))
        self._held += len(self._parts[-1][0])
        if self._held > len(self.ids):
            self.merge()

    def merge(self) -> None:
        """Brings what was counted into `ids` and `counts`."""
        ids, counts = zip((self.ids, self.counts), *self._parts)
        self.ids, inverse = np.unique(np.concatenate(ids), return_inverse=True)
        # Sums below 2^53 are exact in the floats of the weights.
        weights = np.concatenate(counts)
        self.counts = np.bincount(inverse, weights, len(self.ids)).astype(np.int64)
        self._parts, self._held = [], 0


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


def count_dictionary(folder: Path) -> KeyCounts:
    """Takes the counts that preprocess' dictionaries keep; the logs need not be there.

    The rows of the logs that no value of a table accounts for are those of id 0.

    Args:
        folder: An output folder of preprocess.

    Returns:
        The number of rows of the logs with each key.

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
    return KeyCounts(counts, sizes)


def summary(found: KeyCounts) -> str:
    """One line: how many rows are used, and which share of the uses falls on the most used.

    Of ids without a dictionary, the rows are those that are used.
    """
    counts = found.counts
    falling = np.sort(counts)[::-1]
    uses = int(falling.sum())
    tenth = int(falling[: -(-len(falling) // 10)].sum()) / uses if uses else 0.0
    used = int(np.count_nonzero(counts))
    return f"{uses:,} uses of {used:,} of {len(counts):,} rows, {tenth:.1%} of a tenth of the rows"


def write_counts(
    path: Path,
    counts: Counts,
    vocab_sizes: tuple[int, ...],
    keys: NDArray[np.int64] | None = None,
) -> None:
    """Writes a file of counts, complete or not at all; the parts are those of `KeyCounts`."""
    tensors = {VOCAB_SIZES: np.array(vocab_sizes, "<i8"), COUNTS: counts}
    if keys is not None:
        tensors[KEYS] = keys
    with atomic_files.whole_file(path) as unfinished:
        write_tensors(unfinished, tensors)


def read_counts(path: Path, vocab_sizes: tuple[int, ...]) -> KeyCounts:
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
    if tensors.keys() not in ({COUNTS, VOCAB_SIZES}, {COUNTS, VOCAB_SIZES, KEYS}):
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
    keys = tensors.get(KEYS)
    expected = sum(vocab_sizes) if keys is None else len(keys)
    if counts.dtype != np.int64 or counts.shape != (expected,) or counts.min(initial=0) < 0:
        raise ValueError(
            f"{path}: expected {expected:,} counts of 0 or more, found others; {remedy}"
        )
    return KeyCounts(counts, vocab_sizes, keys)
