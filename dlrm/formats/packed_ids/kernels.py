"""Packs and unpacks at the speed of a copy: one program compiled for each packing.

NumPy's own operations take a pass each for gathering, shifting and masking, and a gather of single
words costs ten times a copy. Here a sample's words are one vector: a shuffle puts the word of each
id into its place, one shift and one mask finish it. LLVM turns vectors of any width into what the
machine has. It knows the places of the bits, nothing of vocabularies or files.
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

# Emits the instructions of one sample: (builder, input vector, output's address, further address).
_Emit = Callable[[ir.IRBuilder, Any, Any, Any], None]


@functools.cache
def unpacker(packing: Packing) -> Callable[..., None]:
    """A function (words uint32 [n, words], ids uint32 [n, tables]) that fills the ids."""
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
    """A function (ids uint32 [n, tables], words uint32 [n, words], lost uint32 [tables]).

    It fills the words, and sets in `lost` the bits of any id that its field has no place for, or
    that make it negative.
    """
    tables_of: list[list[int]] = [[] for _ in range(packing.words)]
    for table, field in enumerate(packing.fields):
        tables_of[field.word].append(table)
    masks = _masks(packing.fields)

    def emit(builder: ir.IRBuilder, ids: Any, words: Any, lost: Any) -> None:
        packed: Any = _vector([0] * packing.words)
        # The first id of every word at once, then the second of those that have two, and so on.
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
    """What Numba replaces by the emitted instructions: (input, output, further array, row)."""

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
    def row(typing_context, source, target, further, index):  # type: ignore[no-untyped-def]
        return types.void(source, target, further, index), code

    return row


def _masks(fields: Sequence[Field]) -> list[int]:
    return [(1 << field.bits) - 1 for field in fields]


def _vector(values: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_WORD, len(values)), list(values))


def _shuffled(builder: ir.IRBuilder, vector: Any, sources: Sequence[int]) -> Any:
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), _vector(sources))


def _load(builder: ir.IRBuilder, address: Any, width: int) -> Any:
    pointer = builder.bitcast(address, ir.VectorType(_WORD, width).as_pointer())
    return builder.load(pointer, align=_WORD_ALIGNMENT)


def _store(builder: ir.IRBuilder, vector: Any, address: Any) -> None:
    builder.store(vector, builder.bitcast(address, vector.type.as_pointer()), _WORD_ALIGNMENT)
