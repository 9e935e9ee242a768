"""What users pass to the scorer: types and shapes checked, and the errors for bad values.

Nothing is computed here, and no library is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from serving import scorer_library as library
from serving.id_columns import IdColumns, SampleIds


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
    shape = array.shape
    if one:
        good = shape == (columns,)
    else:
        good = len(shape) == 2 and shape[1] == columns
        good = good and (rows_of is None or shape[0] == len(rows_of))
    if not good or array.dtype != dtype:
        rows = [] if one else ["samples" if rows_of is None else len(rows_of)]
        wanted = ", ".join(map(str, [*rows, columns]))
        raise ValueError(
            f"{name}: expected {np.dtype(dtype).name} [{wanted}], found {array.dtype.name} "
            f"{list(shape)}"
        )
    return np.ascontiguousarray(array)


def checked_ids(
    name: str,
    ids: NDArray[Any],
    weights: NDArray[Any] | None,
    columns: IdColumns,
    *,
    width: int | None = None,
    rows_of: NDArray[Any] | None = None,
    one: bool = False,
) -> SampleIds:
    """Ids or raw values with their weights, if they have the types and shapes that are expected.

    Args:
        name: What the user calls the ids; `values` are int64.
        ids: The user's array.
        weights: The user's weights, or None.
        columns: The columns of the model.
        width: How many of them are expected; None for all.
        rows_of: As for `checked`.
        one: As for `checked`.

    Raises:
        ValueError: They have not, or there are weights where the model takes none, or none where it
            takes them.
    """
    width = columns.width if width is None else width
    dtype = np.int64 if name == "values" else np.int32
    ids = checked(name, ids, dtype, width, rows_of=rows_of, one=one)
    if (weights is not None) != columns.weights:
        wanted, found = ("some", "none") if columns.weights else ("none", "some")
        raise ValueError(
            f"weights: expected {wanted}, as in the model's training, found {found}; give weights "
            "exactly where the data had them"
        )
    if weights is not None:
        rows = None if one else ids
        weights = checked("weights", weights, np.float32, width, rows_of=rows, one=one)
    return SampleIds(ids, weights)


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
    if bad == library.BAD_WEIGHT:
        raise ValueError(
            f"{where}, table {column}: expected finite weights, found one that is not, that of "
            f"id {found}; clean the input"
        )
    if bad == library.BAD_VALUE:
        raise ValueError(
            f"{where}, table {column}: expected a value from 0 to {2**32 - 1}, or -1 for a missing "
            f"one, found {found}; pass the number of the field"
        )
    raise MemoryError("no memory for the activations of a block of samples")
