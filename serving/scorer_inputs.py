"""What users pass to the scorer: types and shapes checked, and the errors for bad values.

Nothing is computed here, and no library is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from serving import scorer_library as library


def checked(
    name: str,
    array: NDArray[Any],
    dtype: Any,
    columns: int,
    *,
    rows_of: NDArray[Any] | None = None,
    one: bool = False,
) -> NDArray[Any]:
    """The array, contiguous, if it has the type and shape that are expected.

    Args:
        name: What the user calls it.
        array: The user's array.
        dtype: The type it must have.
        columns: The length of its last dimension.
        rows_of: Another array with as many rows; None for any number.
        one: Whether it has no dimension for samples.

    Raises:
        ValueError: It has not; the message says what it has.
    """
    array = np.asarray(array)
    shape: tuple[Any, ...] = (columns,) if one else ("samples", columns)
    if rows_of is not None:
        shape = (len(rows_of), columns)
    good = array.dtype == dtype and array.ndim == len(shape)
    if not good or any(a != b for a, b in zip(array.shape, shape) if b != "samples"):
        wanted = ", ".join(map(str, shape))
        raise ValueError(
            f"{name}: expected {np.dtype(dtype).name} [{wanted}], found {array.dtype.name} "
            f"{list(array.shape)}"
        )
    return np.ascontiguousarray(array)


def refuse(bad: int, vocab_sizes: Sequence[int], where: str, column: int, found: Any) -> NoReturn:
    """Raises the error for what the library found.

    Args:
        bad: The kind of fault, a constant of `scorer_library`.
        vocab_sizes: Number of rows of each table.
        where: The sample.
        column: The table or dense column.
        found: The bad value.
    """
    if bad == library.BAD_ID:
        raise ValueError(
            f"{where}, table {column}: expected an id from 0 to {vocab_sizes[column] - 1}, found "
            f"{found}; use the ids that the model was trained with"
        )
    if bad == library.BAD_DENSE:
        raise ValueError(
            f"{where}, dense column {column}: expected a finite value, found {found}; clean the "
            "input"
        )
    if bad == library.BAD_VALUE:
        raise ValueError(
            f"{where}, table {column}: expected a value from 0 to {2**32 - 1}, or -1 for a missing "
            f"one, found {found}; pass the number of the field"
        )
    raise MemoryError("no memory for the activations of a block of samples")
