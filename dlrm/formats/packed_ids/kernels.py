"""Packs and unpacks ids at the speed of a copy, by code compiled for each packing.

NumPy's operations take one pass each for gathering, shifting and masking, and gathering single
words costs ten times as much as a copy. Here the words of a sample are one vector: a shuffle moves
the word of each id to the id's element, then one shift and one mask extract the id. LLVM translates
vectors of any width to those of the machine. The input is words and a packing; vocabularies and
files are no concern of this module.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from dlrm.formats.packed_ids import Field, Packing

_WORD = ir.IntType(32)
_WORD_ALIGNMENT = 4
_ALL_BITS, _SIGN_BIT = 0xFFFFFFFF, 0x80000000
_MATRIX = "uint32[:, ::1]"

# Emits the instructions for one sample: (builder, input vector, output address, extra address).
_Emit = Callable[[ir.IRBuilder, Any, Any, Any], None]


@functools.cache
def unpacker(packing: Packing) -> Callable[..., None]:
    """Compiles a function (words uint32 [n, words], ids uint32 [n, tables]) that fills `ids`."""
    sources = [field.word for field in packing.fields]

    def emit(builder: ir.IRBuilder, words: Any, ids: Any, _: Any) -> None:
        gathered = _shuffled(builder, words, sources)
        shifted = builder.lshr(gathered, _vector([field.shift for field in packing.fields]))
        _store(builder, builder.and_(shifted, _vector(_masks(packing.fields))), ids)

    row = _row_function(packing.words, len(packing.fields), emit)

    def unpack(words, ids):  # type: ignore[no-untyped-def]
        for sample in range(len(words)):
            row(words, ids, words, sample)

    return numba.njit(f"void({_MATRIX}, {_MATRIX})", nogil=True)(unpack)


@functools.cache
def packer(packing: Packing) -> Callable[..., None]:
    """Compiles a function (ids uint32 [n, tables], words uint32 [n, words], lost uint32 [tables]).

    It fills `words`, and sets in `lost` every bit of an id that does not fit its field, or that
    makes the id negative.
    """
    tables_of: list[list[int]] = [[] for _ in range(packing.words)]
    for table, field in enumerate(packing.fields):
        tables_of[field.word].append(table)
    masks = _masks(packing.fields)

    def emit(builder: ir.IRBuilder, ids: Any, words: Any, lost: Any) -> None:
        packed: Any = _vector([0] * packing.words)
        # Packs the first id of every word at once, then the second of words with two, and so on.
        for layer in range(max(map(len, tables_of))):
            tables = [t[layer] if layer < len(t) else None for t in tables_of]
            shifts = [0 if t is None else packing.fields[t].shift for t in tables]
            parts = builder.and_(
                _shuffled(builder, ids, [t or 0 for t in tables]),
                _vector([0 if t is None else masks[t] for t in tables]),
            )
            packed = builder.or_(packed, builder.shl(parts, _vector(shifts)))
        _store(builder, packed, words)
        rest = builder.and_(ids, _vector([~mask & _ALL_BITS | _SIGN_BIT for mask in masks]))
        _store(builder, builder.or_(_load(builder, lost, len(masks)), rest), lost)

    row = _row_function(len(packing.fields), packing.words, emit)

    def pack(ids, words, lost):  # type: ignore[no-untyped-def]
        for sample in range(len(ids)):
            row(ids, words, lost, sample)

    return numba.njit(f"void({_MATRIX}, {_MATRIX}, uint32[::1])", nogil=True)(pack)


def _row_function(width_in: int, width_out: int, emit: _Emit) -> Any:
    """A function (input, output, extra array, row) that Numba replaces by what `emit` emits."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        def address(argument: int) -> Any:
            make = context.make_array(signature.args[argument])
            return make(context, builder, arguments[argument]).data

        def row_address(argument: int, width: int) -> Any:
            index = arguments[3]
            offset = builder.mul(index, ir.Constant(index.type, width))
            return builder.gep(address(argument), [offset])

        vector = _load(builder, row_address(0, width_in), width_in)
        emit(builder, vector, row_address(1, width_out), address(2))
        return context.get_dummy_value()

    @intrinsic
    def row(typing_context, source, target, extra, index):  # type: ignore[no-untyped-def]
        return types.void(source, target, extra, index), code

    return row


def _masks(fields: Sequence[Field]) -> list[int]:
    """For each field, ones in the bits of an id that fits it."""
    return [(1 << field.bits) - 1 for field in fields]


def _vector(values: Sequence[int]) -> ir.Constant:
    """A constant vector of words."""
    return ir.Constant(ir.VectorType(_WORD, len(values)), list(values))


def _shuffled(builder: ir.IRBuilder, vector: Any, sources: Sequence[int]) -> Any:
    """A vector whose element i is element `sources[i]` of the given one."""
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), _vector(sources))


def _load(builder: ir.IRBuilder, address: Any, width: int) -> Any:
    """A vector of the `width` words at an address."""
    pointer = builder.bitcast(address, ir.VectorType(_WORD, width).as_pointer())
    return builder.load(pointer, align=_WORD_ALIGNMENT)


def _store(builder: ir.IRBuilder, vector: Any, address: Any) -> None:
    builder.store(vector, builder.bitcast(address, vector.type.as_pointer()), _WORD_ALIGNMENT)
