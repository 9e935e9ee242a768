"""`zip` that requires equal lengths, as `zip(strict=True)` does from Python 3.10 on.

The profile sok supports Python 3.9, whose `zip` has no such check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

_ABSENT = object()


def zip_strict(*columns: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Yields tuples of one value from each column.

    Raises:
        ValueError: One column ends before another.
    """
    for row in zip_longest(*columns, fillvalue=_ABSENT):
        if any(value is _ABSENT for value in row):
            raise ValueError(f"expected {len(columns)} columns of one length, found a shorter one")
        yield row
