"""How the rows of tables are stored: float32, float16, int8 scaled by table or row, int4 by row.

Encodes and decodes blocks of rows with NumPy. Files and tables are the caller's concern; the
scorer's kernels decode the same bytes on their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT32, FLOAT16, INT8, INT8_ROWS = "float32", "float16", "int8", "int8_rows"
INT4_ROWS = "int4_rows"
TABLE_TYPES = (FLOAT32, FLOAT16, INT8, INT8_ROWS)
"""What the scorer's kernels decode; int4 rows are decoded here alone."""

_SCALED_MAXIMUM = 127.5  # what the largest magnitude of a table becomes, before it is rounded
_INT8_RANGE = -128, 127
_LEVELS = 255  # between the smallest and the largest value of a row
_SCALE_AND_BIAS = 8  # bytes behind the values of a row: two float32, little-endian
_LEVELS_4 = 15
_SCALE_AND_BIAS_4 = 4  # two float16, as FBGEMM has them for int4

Float32 = NDArray[np.float32]


def stored_spec(tables: str, width: int) -> tuple[np.dtype[Any], int]:
    """The type in which a row is stored, and the number of values of this type.

    Args:
        tables: One of `TABLE_TYPES`, or `INT4_ROWS`.
        width: Number of values of a row; even for int4, which has two values a byte.
    """
    if tables == INT8_ROWS:
        return np.dtype("u1"), width + _SCALE_AND_BIAS
    if tables == INT4_ROWS:
        assert width % 2 == 0
        return np.dtype("u1"), width // 2 + _SCALE_AND_BIAS_4
    return np.dtype({FLOAT32: "<f4", FLOAT16: "<f2", INT8: "i1"}[tables]), width


def row_bytes(tables: str, width: int) -> int:
    """The number of bytes of a stored row."""
    dtype, values = stored_spec(tables, width)
    return dtype.itemsize * values


def table_scale(largest: float) -> np.float32:
    """The scale of an int8 table.

    Args:
        largest: The largest magnitude of its values.
    """
    scale = np.float32(largest) / np.float32(_SCALED_MAXIMUM)
    # A scale of 0 would lose the values' place; so small a table is as good as zero.
    return scale if scale > 0 else np.float32(1)


def encode(tables: str, rows: Float32, scales: Float32 | None = None) -> NDArray[Any]:
    """Encodes rows of finite values.

    Args:
        tables: One of `TABLE_TYPES`, or `INT4_ROWS`.
        rows: The rows, float32 [n, width].
        scales: The scale of each row's table, float32 [n]; for int8 alone.

    Returns:
        The stored rows, of the type and width that `stored_spec` says. A magnitude that float16
        cannot hold becomes infinite.
    """
    if tables == FLOAT32:
        return rows
    if tables == FLOAT16:
        with np.errstate(over="ignore"):
            return rows.astype("<f2")
    if tables == INT8:
        assert scales is not None, "int8 needs the tables' scales"
        return np.clip(np.rint(rows / scales[:, None]), *_INT8_RANGE).astype(np.int8)
    return _encode_by_row(rows) if tables == INT8_ROWS else _encode_in_half_bytes(rows)


def decode(tables: str, stored: NDArray[Any], scales: Float32 | None = None) -> Float32:
    """Decodes stored rows: the reverse of `encode`, up to what rounding lost.

    Args:
        tables: One of `TABLE_TYPES`, or `INT4_ROWS`.
        stored: The stored rows, [n, values] as `stored_spec` says.
        scales: The scale of each row's table, float32 [n]; for int8 alone.

    Returns:
        The rows, float32 [n, width].
    """
    if tables == INT8:
        assert scales is not None, "int8 needs the tables' scales"
        return stored.astype(np.float32) * scales[:, None]
    if tables == INT4_ROWS:
        return _decode_half_bytes(stored)
    if tables != INT8_ROWS:
        return stored.astype(np.float32)
    stored = np.ascontiguousarray(stored)
    width = stored.shape[1] - _SCALE_AND_BIAS
    tail = np.ascontiguousarray(stored[:, width:]).view("<f4")
    return stored[:, :width].astype(np.float32) * tail[:, :1] + tail[:, 1:]


def _encode_by_row(rows: Float32) -> NDArray[np.uint8]:
    """Encodes each row with its own scale and bias, in FBGEMM's layout."""
    width = rows.shape[1]
    lowest = rows.min(axis=1, keepdims=True)
    scale = (rows.max(axis=1, keepdims=True) - lowest) / np.float32(_LEVELS)
    shifted = rows - lowest
    # A row of equal values has scale 0, and all of its steps are 0.
    steps = np.divide(shifted, scale, out=np.zeros_like(shifted), where=scale > 0)
    stored = np.empty((len(rows), width + _SCALE_AND_BIAS), np.uint8)
    stored[:, :width] = np.clip(np.rint(steps), 0, _LEVELS)
    tail = np.concatenate([scale, lowest], axis=1).astype("<f4")
    stored[:, width:] = tail.view(np.uint8)
    return stored


def _encode_in_half_bytes(rows: Float32) -> NDArray[np.uint8]:
    """Encodes each row with its own scale and bias, two values a byte, in FBGEMM's layout.

    The first value of a byte is in its low bits. The values fit the scale and the bias as they are
    stored, in float16.
    """
    values = rows.shape[1] // 2
    bias = rows.min(axis=1, keepdims=True).astype("<f2")
    shifted = rows - bias.astype(np.float32)
    scale = (shifted.max(axis=1, keepdims=True) / np.float32(_LEVELS_4)).astype("<f2")
    steps = np.divide(shifted, scale, out=np.zeros_like(shifted), where=scale > 0)
    codes = np.clip(np.rint(steps), 0, _LEVELS_4).astype(np.uint8)
    stored = np.empty((len(rows), values + _SCALE_AND_BIAS_4), np.uint8)
    stored[:, :values] = codes[:, ::2] | codes[:, 1::2] << 4
    stored[:, values:] = np.concatenate([scale, bias], axis=1).view(np.uint8)
    return stored


def _decode_half_bytes(stored: NDArray[np.uint8]) -> Float32:
    values = stored.shape[1] - _SCALE_AND_BIAS_4
    tail = np.ascontiguousarray(stored[:, values:]).view("<f2").astype(np.float32)
    rows = np.empty((len(stored), 2 * values), np.float32)
    rows[:, ::2] = stored[:, :values] & _LEVELS_4
    rows[:, 1::2] = stored[:, :values] >> 4
    rows *= tail[:, :1]
    rows += tail[:, 1:]
    return rows
