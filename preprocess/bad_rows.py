"""Counts bad rows, describes the first ones, and refuses more than the limit.

This module must not know how they are found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

NAMED = 10


@dataclass
class BadRows:
    """The bad rows found so far.

    Attributes:
        limit: The number of bad rows that are skipped; one more is an error.
        count: The number of bad rows so far.
        first: The first ten of them, each as "file, line N: what is wrong".
    """

    limit: int = 0
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, count: int, named: Iterable[str]) -> None:
        """Counts bad rows that come after all rows counted before.

        Args:
            count: The number of bad rows.
            named: Descriptions of them, in order; at least of the first ten.

        Raises:
            ValueError: There are now more bad rows than the limit.
        """
        self.count += count
        for text in named:
            if len(self.first) < NAMED:
                self.first.append(text)
        if self.count > self.limit:
            raise ValueError(self._refusal())

    def _refusal(self) -> str:
        if self.limit == 0:
            return self.first[0]
        return (
            f"expected at most --max_bad_rows={self.limit} bad rows, found more:"
            f" {'; '.join(self.first)}; correct the logs or allow more"
        )
