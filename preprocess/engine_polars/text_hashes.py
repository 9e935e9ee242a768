"""XXH64 of texts, compiled: the hash of columns with `ids: hash` that hold texts.

Source: xxHash fast digest algorithm, specification 0.1.1. The seed is that of Spark's
function `xxhash64`. This module must not know about columns.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numba import uint64

from preprocess.engine_polars.kernels import compiled, word_at

_SEED = np.uint64(42)
_P1, _P2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
_P3, _P4 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_WORD_BITS = np.uint64(64)


def hashed_ids(texts: pl.Series, modulus: int) -> pl.Series:
    """Returns XXH64 of the UTF-8 bytes of each text modulo a number, uint32; of "", null."""
    sizes = texts.str.len_bytes().to_numpy()
    data = "".join(texts.to_list()).encode()
    ids = np.empty(len(texts), np.uint32)
    _hash(np.frombuffer(data, np.uint8), np.cumsum(sizes, dtype=np.int64), np.uint64(modulus), ids)
    frame = pl.DataFrame({texts.name: ids, "size": sizes})
    return frame.select(pl.when(pl.col("size") > 0).then(texts.name)).to_series()


@compiled
def _rotated(number, bits):  # type: ignore[no-untyped-def]
    return (number << uint64(bits)) | (number >> (_WORD_BITS - uint64(bits)))


@compiled
def _round(lane, number):  # type: ignore[no-untyped-def]
    return _rotated(lane + number * _P2, 31) * _P1


@compiled
def _hash(data, ends, modulus, ids):  # type: ignore[no-untyped-def]
    """Writes the hash of each text modulo a number to `ids`.

    Args:
        data: The texts one after another, uint8 [bytes].
        ends: Where each ends, int64 [texts].
        modulus: The number, uint64.
        ids: uint32 [texts].
    """
    at = 0
    for text in range(len(ends)):
        end, size = ends[text], uint64(ends[text] - at)
        if end - at >= 32:
            first, second = _SEED + _P1 + _P2, _SEED + _P2
            third, fourth = _SEED, _SEED - _P1
            while end - at >= 32:
                first = _round(first, word_at(data, at))  # type: ignore[call-arg]
                second = _round(second, word_at(data, at + 8))
                third = _round(third, word_at(data, at + 16))
                fourth = _round(fourth, word_at(data, at + 24))
                at += 32
            found = _rotated(first, 1) + _rotated(second, 7)
            found += _rotated(third, 12) + _rotated(fourth, 18)
            for lane in (first, second, third, fourth):
                found = (found ^ _round(uint64(0), lane)) * _P1 + _P4
        else:
            found = _SEED + _P5
        found += size
        while end - at >= 8:
            found = _rotated(found ^ _round(uint64(0), word_at(data, at)), 27) * _P1 + _P4  # type: ignore[call-arg]
            at += 8
        if end - at >= 4:
            half = uint64(0)
            for i in range(4):
                half |= uint64(data[at + i]) << uint64(8 * i)
            found = _rotated(found ^ (half * _P1), 23) * _P2 + _P3
            at += 4
        while at < end:
            found = _rotated(found ^ (uint64(data[at]) * _P5), 11) * _P1
            at += 1
        found = (found ^ (found >> uint64(33))) * _P2
        found = (found ^ (found >> uint64(29))) * _P3
        found ^= found >> uint64(32)
        ids[text] = np.uint32(found % modulus)
