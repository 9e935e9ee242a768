"""Packed ids: several ids of a sample in one 32-bit word, and the plan of which goes where.

`category.bin` then holds [N, words] instead of [N, tables]. A plan follows from the vocabulary; a
reader needs only the fields that `metadata.json` keeps, not the rule that made them. This module
reads and writes no files; `kernels` moves the bits.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]

WORD_BITS = 32
_FIELD_BITS = (8, 16, 24, 32)

MLPERF_VOCAB_SIZES = (
    *(39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10),
    *(2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36),
)


class Field(NamedTuple):
    """The bits of a sample that hold the id of one table.

    Attributes:
        word: Position of the word in the sample, from 0.
        shift: Number of lower bits in the word.
        bits: Number of bits of the id.
    """

    word: int
    shift: int
    bits: int


# `compress_to16` of MLPerf inference v3.0: word, shift, bits of each table. Word 15 is always 0.
_MLPERF_WORDS = 16
_MLPERF_FIELDS = (
    (0, 0, 32), (1, 16, 16), (1, 0, 16), (2, 16, 16), (2, 0, 16), (8, 24, 8), (3, 16, 16),
    (3, 0, 16), (8, 16, 8), (4, 0, 32), (5, 0, 32), (6, 0, 32), (8, 8, 8), (7, 16, 16),
    (7, 0, 16), (8, 0, 8), (9, 24, 8), (9, 8, 16), (9, 0, 8), (10, 0, 32), (11, 0, 32),
    (12, 0, 32), (13, 0, 32), (14, 16, 16), (14, 8, 8), (14, 0, 8),
)  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """Which bits of which word hold each table's id.

    Attributes:
        words: Number of 32-bit words in a sample.
        fields: The field of each table, in the order of the categorical columns.

    Raises:
        ValueError: A field exceeds its word or overlaps another one.
    """

    words: int
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        used: dict[int, int] = defaultdict(int)
        for table, (word, shift, bits) in enumerate(self.fields):
            if not (0 <= word < self.words and shift >= 0 and 1 <= bits <= WORD_BITS - shift):
                raise ValueError(
                    f"packed_ids: expected [word, shift, bits] within {self.words} words of "
                    f"{WORD_BITS} bits, found {[word, shift, bits]} for table {table}"
                )
            mask = (1 << bits) - 1 << shift
            if used[word] & mask:
                raise ValueError(
                    f"packed_ids: table {table} shares bits of word {word} with another"
                )
            used[word] |= mask

    def to_json(self) -> dict[str, Any]:
        """The value of `packed_ids` in `metadata.json`."""
        return {"words": self.words, "fields": [list(field) for field in self.fields]}

    def check(self, vocab_sizes: Sequence[int]) -> None:
        """Raises `ValueError` unless there is a field for each table that holds all its ids."""
        if len(self.fields) != len(vocab_sizes):
            raise ValueError(
                f"packed_ids: expected {len(vocab_sizes)} fields, one per table, found "
                f"{len(self.fields)}"
            )
        for table, (field, size) in enumerate(zip(self.fields, vocab_sizes)):
            if size > 1 << field.bits:
                raise ValueError(
                    f"packed_ids: expected bits for {size} ids in table {table}, found {field.bits}"
                )

    @classmethod
    def from_json(cls, content: object) -> Packing:
        """The inverse of `to_json`.

        Raises:
            ValueError: The value is not a valid packing.
        """
        if isinstance(content, dict) and content.keys() >= {"words", "fields"}:
            words, fields = content["words"], content["fields"]
            if type(words) is int and isinstance(fields, list) and all(map(_is_field, fields)):
                return cls(words, tuple(Field(*field) for field in fields))
        raise ValueError(
            'packed_ids: expected {"words": N, "fields": [[word, shift, bits], ...]} of integers, '
            f"found {content!r}"
        )

    # Numba takes its time to load, and to hash the fields for each call takes longer than the call.

    @functools.cached_property
    def _packer(self) -> Callable[..., None]:
        from dlrm.formats.packed_ids import kernels

        return kernels.packer(self)

    @functools.cached_property
    def _unpacker(self) -> Callable[..., None]:
        from dlrm.formats.packed_ids import kernels

        return kernels.unpacker(self)

    def pack(self, ids: IntArray, out: IntArray | None = None) -> IntArray:
        """Packs the ids of samples into words.

        Args:
            ids: The ids, int32 [samples, tables].
            out: Where to write, C-contiguous int32 [samples, words]; None makes a new array.

        Returns:
            The words, int32 [samples, words]; bits that belong to no field are 0.

        Raises:
            ValueError: An id is negative or has more bits than its field.
        """
        ids = np.ascontiguousarray(ids, np.int32)
        assert ids.shape[1:] == (len(self.fields),)
        if out is None:
            out = np.empty((len(ids), self.words), np.int32)
        lost = np.zeros(len(self.fields), np.uint32)
        self._packer(ids.view(np.uint32), out.view(np.uint32), lost)
        if lost.any():
            limits = np.array([min(1 << field.bits, 1 << 31) for field in self.fields])
            sample, table = np.argwhere((ids < 0) | (ids >= limits))[0]
            raise ValueError(
                f"sample {sample}, table {table}: expected an id from 0 to {limits[table] - 1}, "
                f"found {ids[sample, table]}; pack with the vocabulary of these ids"
            )
        return out

    def unpack(self, words: IntArray, out: IntArray | None = None) -> IntArray:
        """Unpacks the ids of samples: the inverse of `pack`.

        Args:
            words: The words, int32 [samples, words].
            out: Where to write, C-contiguous int32 [samples, tables]; None makes a new array.

        Returns:
            The ids, int32 [samples, tables].
        """
        words = np.ascontiguousarray(words, np.int32)
        assert words.shape[1:] == (self.words,)
        if out is None:
            out = np.empty((len(words), len(self.fields)), np.int32)
        self._unpacker(words.view(np.uint32), out.view(np.uint32))
        return out


def plan(vocab_sizes: Sequence[int]) -> Packing:
    """Plans a packing of few words for any vocabulary; every id takes whole bytes.

    Each id takes the bytes that its table's largest one needs. First fit by falling size then fills
    the words, and is optimal for items of one to four bytes in words of four. The vocabulary of
    MLPerf gets the layout of MLPerf inference instead, whose files others read.

    Args:
        vocab_sizes: Number of rows of each table, 1 to 2**31.
    """
    if tuple(vocab_sizes) == MLPERF_VOCAB_SIZES:
        return Packing(_MLPERF_WORDS, tuple(Field(*field) for field in _MLPERF_FIELDS))
    widths = [next(bits for bits in _FIELD_BITS if size <= 1 << bits) for size in vocab_sizes]
    free: list[int] = []  # bits left at the lower end of each word
    fields = {}
    for table in sorted(range(len(widths)), key=lambda table: -widths[table]):
        bits = widths[table]
        word = next((word for word, left in enumerate(free) if left >= bits), len(free))
        if word == len(free):
            free.append(WORD_BITS)
        free[word] -= bits
        fields[table] = Field(word, free[word], bits)
    return Packing(len(free), tuple(fields[table] for table in range(len(widths))))


def _is_field(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value)
