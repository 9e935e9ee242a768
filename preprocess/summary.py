"""The summary of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """The result of a run and its duration.

    Attributes:
        description: The content of `records.json`.
        first_seconds: Seconds for pass one: parsing, and building the dictionaries.
        second_seconds: Seconds for pass two: writing the data files.
    """

    description: dict[str, Any]
    first_seconds: float
    second_seconds: float

    @property
    def rows(self) -> int:
        """Number of rows in all splits."""
        return sum(self.description[f"{name}_samples"] for name in ("train", "validation", "test"))
