"""Bags of a range of samples, from the files of the tables that hold them.

A table without bags takes part with bags of one id, so that a batch has one representation. Ids
are read into their place in the batch; nothing is copied but the columns of `category.bin`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.bag_files import BagFiles
from dlrm.formats.bags import Bags


def read_bags(
    files: Sequence[BagFiles],
    start: int,
    stop: int,
    single_tables: Sequence[int],
    single_ids: NDArray[np.int32],
) -> Bags:
    """Reads the bags of samples [start, stop).

    Args:
        files: The files of the tables with bags.
        start: The first sample.
        stop: The sample after the last one.
        single_tables: The tables without bags.
        single_ids: Their ids, int32 [samples, single tables].

    Raises:
        ValueError: A file's offsets are wrong, a weight is not finite, or a file was cut.
    """
    tables = len(files) + len(single_tables)
    lengths = np.ones((tables, stop - start), np.int32)
    first = {
        file.bag.table: file.read_lengths(start, stop, lengths[file.bag.table]) for file in files
    }
    ends = np.cumsum(lengths.sum(axis=1, dtype=np.int64))
    ids = np.empty(ends[-1], np.int32)
    weighted = any(file.weights for file in files)
    weights = np.ones(len(ids) if weighted else 0, np.float32)
    places = [slice(end - count, end) for end, count in zip(ends, lengths.sum(axis=1))]
    for column, table in enumerate(single_tables):
        ids[places[table]] = single_ids[:, column]
    for file in files:
        place = places[file.bag.table]
        file.ids.read_into(first[file.bag.table], ids[place])
        if file.weights is not None:
            file.weights.read_into(first[file.bag.table], weights[place])
            _check_weights(file, first[file.bag.table], weights[place])
    return Bags(ids, lengths, weights)


def _check_weights(file: BagFiles, first: int, weights: NDArray[np.float32]) -> None:
    """Refuses weights that are not finite; the first of these is number `first` of its file."""
    good = np.isfinite(weights)
    if not good.all():
        bad = int(np.argmin(good))
        assert file.weights is not None
        raise ValueError(
            f"{file.weights.path}: weight {first + bad}: expected a finite value, found "
            f"{weights[bad]}; clean the input, and write the folder again"
        )
