"""Decodes stored columns: labels and dense values to checked float32, packed ids to int32.

Each block is decoded in one pass, over memory that stays in cache. Any range of samples will do:
how batches are cut is no concern of this module.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.bags import BagLayout, Bags, ids_of_tables
from dlrm.formats.column_file import ColumnFile
from dlrm.formats.packed_ids import Packing

# Raw values in a block: about 200 kB, which stay in the second-level cache until converted.
_BLOCK_VALUES = 1 << 16

# Packed words in a block, 512 kB. Unpacking is so fast that smaller blocks lose more in calls than
# they gain in cache.
_BLOCK_WORDS = 1 << 17


def read_labels(file: ColumnFile, start: int, stop: int) -> NDArray[np.float32]:
    """Reads the labels of samples [start, stop), float32 [samples].

    Raises:
        ValueError: A label is neither 0 nor 1; the message names the file, record and value.
    """
    raw = file.read(start, stop)[:, 0]
    good = (raw == 0) | (raw == 1)
    if not good.all():
        record = int(np.argmin(good))
        raise ValueError(
            f"{os.fspath(file.path)}: record {start + record}: expected label 0 or 1, found "
            f"{raw[record]}; clean the input, or correct label_raw_type in metadata.json"
        )
    return raw.astype(np.float32)


def read_packed_ids(file: ColumnFile, start: int, stop: int, packing: Packing) -> NDArray[np.int32]:
    """Reads the ids of samples [start, stop) from their packed words, int32 [samples, tables]."""
    ids = np.empty((stop - start, len(packing.fields)), np.int32)
    block = max(1, _BLOCK_WORDS // file.width)
    words = np.empty((min(block, stop - start), file.width), file.dtype)
    for first in range(0, stop - start, block):
        out = ids[first : first + block]
        file.read_into(start + first, words[: len(out)])
        packing.unpack(words[: len(out)], out)
    return ids


def read_dense(
    file: ColumnFile, start: int, stop: int, log_offset: float | None
) -> NDArray[np.float32]:
    """Reads the dense values of samples [start, stop), float32 [samples, num_dense].

    Args:
        file: The stored values, of any number type.
        start: The first sample.
        stop: The sample after the last one.
        log_offset: None for the values x themselves, a number for ln(x + log_offset).

    Raises:
        ValueError: A result is not finite; the message names the file, record, column and value.
    """
    dense = np.empty((stop - start, file.width), np.float32)
    block = max(1, _BLOCK_VALUES // file.width)
    direct = log_offset is None and file.dtype == np.float32
    raw = np.empty((0 if direct else min(block, stop - start), file.width), file.dtype)
    for first in range(0, stop - start, block):
        out = dense[first : first + block]
        stored = out if direct else raw[: len(out)]
        file.read_into(start + first, stored)
        if not direct:
            np.copyto(out, stored, casting="unsafe")
        if log_offset is not None:
            out += np.float32(log_offset)
            # Values that are not finite raise an error below; NumPy's warning names none.
            with np.errstate(divide="ignore", invalid="ignore"):
                np.log(out, out=out)
        # A single NaN makes both extremes NaN, and every comparison with NaN is false.
        if not (out.min() > -np.inf and out.max() < np.inf):
            _raise_not_finite(file, start + first, stored, out, log_offset)
    return dense


def _raise_not_finite(
    file: ColumnFile,
    first_record: int,
    stored: NDArray[np.generic],
    out: NDArray[np.float32],
    log_offset: float | None,
) -> None:
    """Raises the error that names the first value of a block that is not finite."""
    record, column = (int(index) for index in np.argwhere(~np.isfinite(out))[0])
    value = f"{stored[record, column]}"
    if log_offset is not None:
        value = f"ln({value} + {log_offset:g}) = {out[record, column]}"
    raise ValueError(
        f"{os.fspath(file.path)}: record {first_record + record}, dense column {column}: expected "
        f"a finite value, found {value}; clean the input, or correct dense_raw_type, dense_log or "
        "dense_log_offset in metadata.json"
    )


def check_ids(
    where: object, first: int, ids: NDArray[np.int32], vocab_sizes: Sequence[int]
) -> None:
    """Refuses ids outside their table.

    Args:
        where: Where the samples come from, for the message.
        first: Number of the first sample there.
        ids: int32 [samples, tables].
        vocab_sizes: Number of rows of each table.

    Raises:
        ValueError: The message names the first of them.
    """
    bad = first_id_outside(ids, vocab_sizes)
    if bad is not None:
        sample, table, found = bad
        raise ValueError(
            f"{where}: sample {first + sample}, table {table}: expected an id from 0 to "
            f"{vocab_sizes[table] - 1}, found {found}; correct vocab_sizes in "
            "metadata.json, or write the data again"
        )


def refuse_bags(where: object, layout: BagLayout | None) -> None:
    """Refuses samples whose tables hold bags of ids, for readers of one id in each table.

    Args:
        where: Where the samples come from, for the message.
        layout: The samples' `Source.bag_layout`.

    Raises:
        ValueError: There are bags.
    """
    if layout is not None:
        raise ValueError(
            f"{where}: expected one id in each table, found bags of ids; give data without bags"
        )


def first_id_outside(
    ids: NDArray[np.int32] | Bags, vocab_sizes: Sequence[int]
) -> tuple[int, int, int] | None:
    """Finds the first id outside its table: the sample in the batch, the table, and the id.

    Args:
        ids: int32 [samples, tables], or bags of them, of which the first table's is returned.
        vocab_sizes: Number of rows of each table.
    """
    sizes = np.asarray(vocab_sizes)
    if not isinstance(ids, Bags):
        bad = np.argwhere((ids < 0) | (ids >= sizes))  # [bad ids, 2]
        if not len(bad):
            return None
        sample, table = map(int, bad[0])
        return sample, table, int(ids[sample, table])
    for table, (found, lengths) in enumerate(zip(ids_of_tables(ids), ids.lengths)):
        outside = np.flatnonzero((found < 0) | (found >= sizes[table]))
        if len(outside):
            sample = np.searchsorted(np.cumsum(lengths), outside[0], side="right")
            return int(sample), table, int(found[outside[0]])
    return None
