"""Rows that are no good: counted, the first ones named by file and line, refused if too many.

It must not know about how they were found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

NAMED = 10


@dataclass
class BadRows:
    """The bad rows met so far.

    Attributes:
        limit: So many are left out; one more is an error.
        count: How many there were.
        first: The first ten, each as "file, line N: what is wrong".
    """

    limit: int = 0
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, count: int, named: Iterable[str]) -> None:
        """Counts rows that come after all counted before.

        Args:
            count: How many.
            named: What is wrong with them, in order; at least the first ten.

        Raises:
            ValueError: There are now more than the limit.
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
            f" {'; '.join(self.first)}; mend the logs or allow more"
        )
