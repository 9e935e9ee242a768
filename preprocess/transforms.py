"""What dense columns learn from the training rows, and a logarithm with the same bits everywhere.

Statistics come from at most 2^18 training rows: all of them, or evenly spaced ones. They depend on
the rows alone, not on the engine. This module must not know about files or expressions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.columns import MEAN, MEDIAN, QUANTILE, STANDARDISE, DenseColumn

_SAMPLE_ROWS = 1 << 18

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class DenseStatistics:
    """What one dense column has learnt; of columns that learn nothing, the default.

    Attributes:
        missing: The x of a row without one.
        mean: With "standardise", what is subtracted.
        deviation: With "standardise", what the difference is divided by.
        edges: With "quantile", the inner edges of the buckets, ascending.
    """

    missing: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0
    edges: list[float] = field(default_factory=list)


def sample_stride(rows: int) -> int:
    """Returns the distance of the rows that statistics are computed from: a power of two."""
    stride = 1
    while rows > stride * _SAMPLE_ROWS:
        stride *= 2
    return stride


def learn(column: DenseColumn, values: Float64) -> DenseStatistics:
    """Computes the statistics of a column.

    Args:
        column: The column.
        values: Its numbers in the sampled training rows, float64 [rows]; NaN where missing.

    Raises:
        ValueError: There are no numbers to learn from.
    """
    if not column.learns:
        return DenseStatistics(_filler(column, values))
    known = values[~np.isnan(values)]
    if not len(known):
        raise ValueError(
            f"column {column.name}: expected numbers in the training rows to learn its"
            f" {_learnt(column)} from, found none; give it another rule"
        )
    missing = _filler(column, known)
    if column.transform not in (STANDARDISE, QUANTILE):
        return DenseStatistics(missing)
    filled = np.where(np.isnan(values), missing, values)
    if column.clip:
        filled = np.clip(filled, *column.clip)
    if column.transform == QUANTILE:
        shares = np.arange(1, column.buckets) / column.buckets
        return DenseStatistics(missing, edges=np.unique(np.quantile(filled, shares)).tolist())
    mean = math.fsum(filled) / len(filled)
    deviation = math.sqrt(math.fsum((filled - mean) ** 2) / len(filled))
    return DenseStatistics(missing, mean, deviation or 1.0)


def _learnt(column: DenseColumn) -> str:
    return column.transform if column.transform in (STANDARDISE, QUANTILE) else str(column.missing)


def _filler(column: DenseColumn, known: Float64) -> float:
    if column.missing == MEAN:
        return math.fsum(known) / len(known)
    if column.missing == MEDIAN:
        return float(np.median(known))
    return float(column.missing) if isinstance(column.missing, (int, float)) else 0.0


# Constants of the natural logarithm in Sun's fdlibm (e_log.c), which Java's StrictMath follows.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_ODD = (0.6666666666666735130, 0.2857142874366239149, 0.1818357216161805012, 0.1479819860511658591)
_EVEN = (0.3999999999940941908, 0.2222219843214978396, 0.1531383769920937332)
_MANTISSA = np.int64(0xFFFFF)
_ONE = np.int64(0x3FF00000)
_HALF_OCTAVE = np.int64(0x95F64)
_OCTAVE = np.int64(0x100000)


def natural_log(values: Any) -> Float64:
    """Returns ln of positive normal numbers, with the bits that Java's StrictMath gives.

    The C library's differs from it in the last bit here and there. Source: fdlibm's e_log.c, whose
    branches for a zero exponent are special cases of the others.

    Args:
        values: float64 [rows].
    """
    words = np.asarray(values, np.float64).view(np.int64)
    high, low = words >> 32, words & np.int64(0xFFFFFFFF)
    exponent = (high >> 20) - 1023
    high &= _MANTISSA
    carry = (high + _HALF_OCTAVE) & _OCTAVE
    f = ((high | (carry ^ _ONE)) << 32 | low).view(np.float64) - 1.0
    k = (exponent + (carry >> 20)).astype(np.float64)
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    even = w * (_EVEN[0] + w * (_EVEN[1] + w * _EVEN[2]))
    odd = z * (_ODD[0] + w * (_ODD[1] + w * (_ODD[2] + w * _ODD[3])))
    rest = odd + even
    half = 0.5 * f * f
    middle = k * _LN2_HIGH - ((half - (s * (half + rest) + k * _LN2_LOW)) - f)
    outer = k * _LN2_HIGH - ((s * (f - rest) - k * _LN2_LOW) - f)
    r = f * f * (0.5 - 0.33333333333333333 * f)
    tiny = k * _LN2_HIGH - ((r - k * _LN2_LOW) - f)
    result = np.where(((high - 0x6147A) | (0x6B851 - high)) > 0, middle, outer)
    result = np.where((_MANTISSA & (2 + high)) < 3, tiny, result)
    return np.where(f == 0, k * _LN2_HIGH + k * _LN2_LOW, result)
