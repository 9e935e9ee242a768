"""The loops over single bytes and values, compiled by Numba: parsing, lookups in hash tables.

Polars and NumPy take several passes over their arrays for what is one pass here. The loops let go
of the interpreter lock. This module must not know about files, rules or error messages.
"""

from __future__ import annotations

from typing import Any, Callable

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LABEL, INTEGER, HEX = 0, 1, 2
"""The kinds of fields that `parse` knows."""

_HEX_DIGITS = 8
_NO_DIGIT = 255
_DIGITS = np.full(256, _NO_DIGIT, np.uint8)
for _digit in range(16):
    _DIGITS[[ord(f"{_digit:x}"), ord(f"{_digit:X}")]] = _digit
_TOO_LARGE = 1 << 31  # the first number above int32
_LF, _CR, _MINUS, _ZERO = b"\n\r-0"

_MULTIPLIER = np.uint32(0x9E3779B1)
_VALUE_SHIFT = np.uint64(32)
_ID_BITS = np.uint64(0xFFFFFFFF)


def _each_byte(value: int) -> np.uint64:
    """Returns a word with the same value in each of its eight bytes."""
    return np.uint64(int.from_bytes(bytes([value] * 8), "little"))


_ONES, _NIBBLES, _HIGH_NIBBLES = _each_byte(1), _each_byte(0x0F), _each_byte(0xF0)
_CHARACTER_ZERO, _BELOW_TEN = _each_byte(ord("0")), _each_byte(0x80 - 10)
_FROM_NINE = np.uint64(9)
_FROM_TEN = np.uint64(ord("a") - ord("0") - 10)
_1, _4, _5, _6, _7, _8, _16, _32 = (np.uint64(n) for n in (1, 4, 5, 6, 7, 8, 16, 32))
_EVEN_BYTES, _EVEN_PAIRS = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
_BAD_WORD = np.int64(-1)


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function at its first call, and keeps the code for the next process."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return numba.njit(nogil=True)(function)


@intrinsic
def word_at(typing_context, text, at):  # type: ignore[no-untyped-def]
    """Returns the eight bytes of `text`, uint8 [bytes], from `at` on as one word."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(text, at), code


@compiled
def _eight_digits(word):  # type: ignore[no-untyped-def]
    """Returns the number that eight hexadecimal digits in a word make, or -1.

    A byte's digit is its low nibble, and nine more in a letter. It is right if the digit's own
    character is the byte, in lower case.
    """
    letters = (word >> _6) & _ONES
    digits = (word & _NIBBLES) + letters * _FROM_NINE
    above_nine = ((digits + _BELOW_TEN) >> _7) & _ONES
    characters = _CHARACTER_ZERO + digits + above_nine * _FROM_TEN
    if characters != (word | (letters << _5)) or digits & _HIGH_NIBBLES:
        return _BAD_WORD
    # The first digit is in the lowest byte: neighbours join, to bytes, to pairs, to a half.
    joined = ((digits << _4) | (digits >> _8)) & _EVEN_BYTES
    joined = ((joined << _8) | (joined >> _16)) & _EVEN_PAIRS
    return np.int64(((joined << _16) | (joined >> _32)) & _ID_BITS)


@compiled
def parse(text, delimiter, kinds, targets, columns, missing, missing_counts):  # type: ignore[no-untyped-def]
    """Parses lines of numbers into columns.

    Args:
        text: The lines, uint8 [bytes]; each ends in LF or CRLF, which the last one may lack.
        delimiter: The character between two fields.
        kinds: The kind of each field, int64 [fields].
        targets: The column of each field, int64 [fields]; those of kind HEX come last.
        columns: Where to write the values, int32 [fields, rows]; empty fields become 0.
        missing: Where to write which fields of kind HEX are empty, bool [rows, tables].
        missing_counts: What the number of empty fields is added to, int64 [tables].

    Returns:
        Whether every line is well-formed and there are as many as `columns` has rows. If not, what
        was written means nothing.
    """
    size, last = len(text), len(kinds) - 1
    rows, first_table = len(missing), len(kinds) - len(missing_counts)
    at = 0
    for row in range(rows):
        for field in range(last + 1):
            kind, target = kinds[field], targets[field]
            begin, value = at, np.int64(0)
            if kind == HEX:
                # Nearly all fields have eight digits, which need no loop.
                if at + _HEX_DIGITS < size and (
                    text[at + _HEX_DIGITS] == delimiter or text[at + _HEX_DIGITS] == _LF
                ):
                    value = _eight_digits(word_at(text, at))  # type: ignore[call-arg]
                    if value >= 0:
                        at += _HEX_DIGITS
                    else:
                        value = np.int64(0)
                while at < size and at - begin < _HEX_DIGITS:
                    digit = _DIGITS[text[at]]
                    if digit == _NO_DIGIT:
                        break
                    value = (value << 4) | np.int64(digit)
                    at += 1
                missing[row, target - first_table] = at == begin
                missing_counts[target - first_table] += at == begin
            else:
                negative = at < size and text[at] == _MINUS
                at += negative
                digits = at
                while at < size and value <= _TOO_LARGE:
                    digit = np.int64(text[at]) - _ZERO
                    if digit < 0 or digit > 9:
                        break
                    value = value * 10 + digit
                    at += 1
                if at == digits and (negative or kind == LABEL):
                    return False
                if value > (1 - negative if kind == LABEL else _TOO_LARGE - 1 + negative):
                    return False
                if negative:
                    value = -value
            columns[target, row] = value
            if field < last:
                if at >= size or text[at] != delimiter:
                    return False
                at += 1
        if at < size and text[at] == _CR:
            at += 1
        if at < size:
            if text[at] != _LF:
                return False
            at += 1
        elif row < rows - 1:
            return False
    return at == size


@compiled
def encode(values, absent, modulus, bits, slots, known, counts, size, start):  # type: ignore[no-untyped-def]
    """Replaces values by their ids in a hash table with open addressing, and counts them.

    Args:
        values: The values, uint32 [rows]; their ids, or -1, take their places.
        absent: Which rows have no value and get -1, bool [rows] or [0].
        modulus: What values are taken modulo of; 0 leaves them as they are.
        bits: Bits of the number of a slot.
        slots: The hash table, uint64 [2 ** bits]: `value << 32 | id + 1`, or 0.
        known: Where the distinct values are, by id, uint32 [2 ** bits / 2].
        counts: Number of rows with each value, by id, int64 [2 ** bits / 2].
        size: The number of distinct values.
        start: The row to begin with.

    Returns:
        The row at which half of the slots were taken and a new value was found, or the number of
        rows; and the number of distinct values.
    """
    shift = np.uint32(32 - bits)
    mask = len(slots) - 1
    for row in range(start, len(values)):
        if len(absent) and absent[row]:
            values[row] = _ID_BITS
            continue
        value = values[row]
        if modulus:
            value = np.uint32(value % modulus)
        slot = np.int64(np.uint32(value * _MULTIPLIER) >> shift)
        word = slots[slot]
        while word and word >> _VALUE_SHIFT != value:
            slot = (slot + 1) & mask
            word = slots[slot]
        if word == 0:
            if 2 * size == len(slots):
                return row, size
            known[size] = value
            size += 1
            word = (np.uint64(value) << _VALUE_SHIFT) | np.uint64(size)
            slots[slot] = word
        index = np.uint32(word & _ID_BITS) - np.uint32(1)
        counts[index] += 1
        values[row] = index
    return len(values), size
