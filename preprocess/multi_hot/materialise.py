"""Makes a split folder with MLPerf's bags from one with one id in each table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from dlrm.data import SplitSource
from dlrm.data.decode import refuse_bags
from dlrm.formats import file_names
from dlrm.formats.metadata import read_metadata
from preprocess.multi_hot.folders import bag_tables, whole_folder
from preprocess.multi_hot.random_bags import RandomBags

BLOCK_SAMPLES = 1 << 16


def materialise(
    folder: Path,
    out: Path,
    hotness: Sequence[int],
    table_sizes: Sequence[int] | None,
    on_message: Callable[[str], None],
) -> None:
    """Writes the same samples with bags; holds the bags of one table's distinct ids at a time.

    Args:
        folder: The split folder to read.
        out: The folder to write.
        hotness: Number of ids in each table's bags.
        table_sizes: Number of rows of each table, by which ids are taken modulo; None for those of
            the folder.
        on_message: Called with a line for each table that is written.

    Raises:
        ValueError: The folder is malformed or has bags, the numbers do not fit its tables, or `out`
            holds data.
        OSError: A file cannot be read or written.
    """
    source = SplitSource(folder)
    refuse_bags(folder, source.bag_layout)
    sizes = tuple(table_sizes or source.vocab_sizes)
    for what, numbers in (("--hotness", hotness), ("--table_sizes", sizes)):
        if len(numbers) != len(source.vocab_sizes) or min(numbers) < 1:
            raise ValueError(
                f"{what}: expected a number from 1 for each of the {len(source.vocab_sizes)} "
                f"tables in {folder}, found {len(numbers)}"
            )
    before = read_metadata(folder)
    description = replace(before, vocab_sizes=sizes, packed_ids=None, bags=bag_tables(hotness))
    random = RandomBags()
    with whole_folder(out, description) as writer:
        for name in (file_names.LABEL, file_names.DENSE):
            writer.column(name, _bytes_of(folder / name))
        singles = list(description.single_tables)
        if singles:
            columns = (ids[:, singles] % _row(sizes, singles) for ids in _ids(source))
            writer.column(file_names.CATEGORY, columns)
        tables = {bag.table: bag for bag in description.bags}
        for table, count in enumerate(hotness):
            # In the order of the tables, as they share one stream of random numbers.
            if table not in tables:
                continue
            column = np.concatenate([ids[:, table] % sizes[table] for ids in _ids(source)])
            wanted = np.unique(column)
            bags = random.of_feature(sizes[table], count, wanted)
            writer.bags(tables[table], _picked(bags, wanted, column))
            on_message(f"table {table}: {len(wanted):,} bags of {count} ids")


def _ids(source: SplitSource) -> Iterator[NDArray[np.int32]]:
    """Yields the ids of all samples, block by block, int32 [samples, tables]."""
    for start in range(0, source.num_samples, BLOCK_SAMPLES):
        ids = source.read_ids(start, min(start + BLOCK_SAMPLES, source.num_samples))
        assert isinstance(ids, np.ndarray), "there are no bags"
        yield ids


def _row(sizes: Sequence[int], tables: Sequence[int]) -> NDArray[np.int32]:
    """The sizes of some tables; 2^31 itself, which no id reaches, as the number below."""
    return np.array([min(sizes[table], 2**31 - 1) for table in tables], np.int32)


def _picked(
    bags: NDArray[np.int32], wanted: NDArray[np.int32], column: NDArray[np.int32]
) -> Iterator[NDArray[np.int32]]:
    """Yields the bag of each sample, block by block."""
    for start in range(0, len(column), BLOCK_SAMPLES):
        yield bags[np.searchsorted(wanted, column[start : start + BLOCK_SAMPLES])]


def _bytes_of(path: Path) -> Iterator[NDArray[Any]]:
    """Yields the bytes of a file, block by block."""
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            yield np.frombuffer(block, np.uint8)
