"""Columns whose ids need no dictionary: the id is the column's number modulo the table's size.

The number is what the column's type makes of a field. This module reads the keys of a schema; it
must not know about engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from preprocess.schema_keys import choice


def says_hash(entry: Mapping[str, Any]) -> bool:
    """Whether a categorical column of a schema has `ids: hash`.

    Raises:
        ValueError: The key has another value than `dictionary` or `hash`, or beside `ids: hash` the
            modulus is absent, or there is a threshold.
    """
    where = f"categorical column {entry['name']}: "
    if choice(entry, "ids", ("dictionary", "hash"), "dictionary", where) == "dictionary":
        return False
    if "modulo" not in entry:
        raise ValueError(
            f"{where}modulo: expected beside ids: hash, found none; give the number of ids, at most"
            " 2147483647"
        )
    if "threshold" in entry:
        raise ValueError(
            f"{where}threshold: expected without ids: hash, which counts nothing, found"
            f" {entry['threshold']}; remove it, and let training count with --embedding=dynamic"
            " --admit_after=N"
        )
    return True


def hashed_tables(entries: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Returns the tables whose columns have `ids: hash`, in order.

    Args:
        entries: The categorical columns in the order of their tables.

    Raises:
        ValueError: See `says_hash`.
    """
    return tuple(table for table, entry in enumerate(entries) if says_hash(entry))
