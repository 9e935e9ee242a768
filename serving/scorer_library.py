"""The scorer's C++ library through ctypes: its structures, functions and instruction sets.

Where artifacts come from and how errors read is not its concern.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LIBRARY = Path(__file__).resolve().parents[1] / "build" / "serving" / "libscorer.so"
REMEDY = "build it with `make serving_core`"

# The numbers of `serving/core/scorer.h`.
ROW_TYPES = {"float32": 0, "float16": 1, "int8": 2, "int8_rows": 3}
INTERACTIONS = {"dot": 0, "concat": 1, "dcnv2": 1, "sum": 2}  # dcnv2 has cross layers behind it
ONE_ID, POOLINGS = 0, {"sum": 1, "mean": 2}
LEVELS = {
    name: level
    for level, name in enumerate(
        ("portable", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_amx")
    )
}
OK, BAD_ID, BAD_DENSE, BAD_VALUE, BAD_WEIGHT, NO_MEMORY = range(6)
USER = -1  # the sample of a fault in the ids and weights of a user

_ADDRESS, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class LibraryLayer(ctypes.Structure):
    """`ScorerLayer`."""

    _fields_ = (
        *(("inputs", _LONG), ("outputs", _LONG), ("int8", _INT), ("relu", _INT)),
        *((name, _ADDRESS) for name in ("kernel", "bias")),
        *((name, _ADDRESS) for name in ("kernel_scale", "input_scale", "input_zero")),
    )


class LibraryModel(ctypes.Structure):
    """`ScorerModel`."""

    _fields_ = (
        *((name, _LONG) for name in ("num_dense", "tables", "width")),
        *((name, _ADDRESS) for name in ("vocab_sizes", "pooling", "max_ids")),
        *(("row_type", _INT), ("table_scales", _ADDRESS)),
        *(("rows", _ADDRESS), ("rows_mapped", _INT), ("hot_rows", _LONG)),
        *(("positions", _ADDRESS), ("position_bytes", _INT)),
        *(("bottom_count", _INT), ("top_count", _INT)),
        *(("bottom", ctypes.POINTER(LibraryLayer)), ("top", ctypes.POINTER(LibraryLayer))),
        *(("interaction", _INT), ("cross_count", _INT)),
        ("cross", ctypes.POINTER(LibraryLayer)),
        *(("dictionary_count", _LONG), ("dictionary_values", _ADDRESS)),
        *(("dictionary_ids", _ADDRESS), ("moduli", _ADDRESS), ("missing_is_value", _INT)),
        *((name, _ADDRESS) for name in ("known_counts", "known_ids", "initial_bounds")),
        ("initial_seed", ctypes.c_uint64),
    )


class LibraryFault(ctypes.Structure):
    """`ScorerFault`."""

    _fields_ = (("sample", _LONG), ("column", _LONG), ("value", _LONG))


@functools.cache
def load() -> ctypes.CDLL:
    """Loads the library.

    Raises:
        OSError: It is not built, or for another version of this project.
    """
    if not LIBRARY.exists():
        raise OSError(f"{LIBRARY}: the scorer is not built; {REMEDY}")
    library = ctypes.CDLL(str(LIBRARY))
    expected, found = ctypes.sizeof(LibraryModel), _model_bytes(library)
    if found != expected:
        raise OSError(
            f"{LIBRARY}: built from another version: expected a ScorerModel of {expected} bytes, "
            f"found {found or 'an older one'}; {REMEDY}"
        )
    fault = ctypes.POINTER(LibraryFault)
    for name, result, arguments in (
        ("cpu_level", ctypes.c_int, ()),
        ("supports", ctypes.c_int, (ctypes.c_int,)),
        ("open", _ADDRESS, (ctypes.POINTER(LibraryModel), ctypes.c_int, ctypes.c_int)),
        ("close", None, (_ADDRESS,)),
        ("score", ctypes.c_int, (*(_ADDRESS,) * 4, _LONG, _ADDRESS, fault)),
        (
            "candidates",
            ctypes.c_int,
            (*(_ADDRESS,) * 3, _LONG, *(_ADDRESS,) * 4, _LONG, _ADDRESS, fault),
        ),
        ("look_up", ctypes.c_int, (_ADDRESS, _ADDRESS, _LONG, _ADDRESS, fault)),
        ("unpack", None, (_ADDRESS, _LONG, _LONG, _ADDRESS, _LONG, _ADDRESS)),
        ("lookups", None, (_ADDRESS, ctypes.POINTER(_LONG), ctypes.POINTER(_LONG))),
    ):
        function = getattr(library, f"scorer_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _model_bytes(library: ctypes.CDLL) -> int:
    """The size of the library's `ScorerModel`; 0 if it is too old to say."""
    try:
        function = library.scorer_model_bytes
    except AttributeError:
        return 0
    function.restype = _LONG
    return int(function())


def levels() -> list[str]:
    """The instruction sets that this CPU has, the best one last."""
    return [name for name, level in LEVELS.items() if load().scorer_supports(level)]


def address(array: NDArray[np.generic] | None) -> int | None:
    """The address of an array's first value; None for no array."""
    return None if array is None else array.ctypes.data
