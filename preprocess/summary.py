"""What a run says of itself when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        description: The content of `records.json`.
        first_seconds: Duration of parsing and of making the dictionaries.
        second_seconds: Duration of writing.
    """

    description: dict[str, Any]
    first_seconds: float
    second_seconds: float

    @property
    def rows(self) -> int:
        """Rows in all splits."""
        return sum(self.description[f"{name}_samples"] for name in ("train", "validation", "test"))
