"""Stored labels and dense values -> checked float32; packed ids -> int32.

One pass a block, over memory that stays in cache. It knows nothing of batches.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from dlrm.formats.column_file import ColumnFile
from dlrm.formats.packed_ids import Packing

# Raw values of a block, about 200 kB, stay in the second-level cache until they are converted.
_BLOCK_VALUES = 1 << 16

# Words of a block, 512 kB: unpacking is so quick that smaller blocks cost more in calls than they
# gain in cache.
_BLOCK_WORDS = 1 << 17


def read_labels(file: ColumnFile, start: int, stop: int) -> NDArray[np.float32]:
    """Labels of samples [start, stop), float32 [samples].

    Raises:
        ValueError: A label is neither 0 nor 1; names the file, record and value.
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
    """Ids of samples [start, stop) from their words, int32 [samples, tables]."""
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
    """Dense values of samples [start, stop), float32 [samples, num_dense].

    Args:
        file: Where they are stored, as any number type.
        start: First sample.
        stop: The one after the last sample.
        log_offset: None for the values themselves, else ln(x + log_offset).

    Raises:
        ValueError: A result is not finite; names the file, record, column and value.
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
            # What is not finite gets an error that names it, in place of a warning.
            with np.errstate(divide="ignore", invalid="ignore"):
                np.log(out, out=out)
        # A NaN anywhere makes both NaN, and every comparison with it false.
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
    record, column = (int(index) for index in np.argwhere(~np.isfinite(out))[0])
    value = f"{stored[record, column]}"
    if log_offset is not None:
        value = f"ln({value} + {log_offset:g}) = {out[record, column]}"
    raise ValueError(
        f"{os.fspath(file.path)}: record {first_record + record}, dense column {column}: expected "
        f"a finite value, found {value}; clean the input, or correct dense_raw_type, dense_log or "
        "dense_log_offset in metadata.json"
    )
