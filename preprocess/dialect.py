"""The operations that Polars and Spark spell differently, and the conditions made of them.

`preprocess.row_expressions` writes rules with them once for both engines. This module must not know
about columns or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Expression = Any


class Dialect(Protocol):
    """The operations that Polars and Spark spell differently."""

    def literal(self, value: float | int | str) -> Expression:
        """Returns a constant."""

    def where(self, condition: Expression, chosen: Expression, other: Expression) -> Expression:
        """Returns `chosen` where the condition holds and `other` elsewhere."""

    def matches(self, text: Expression, pattern: str) -> Expression:
        """Whether a text matches a regular expression that both engines know."""

    def number(self, text: Expression) -> Expression:
        """Returns the float64 that a text stands for; null if it is no number."""

    def piece(self, text: Expression, start: int, length: int) -> Expression:
        """Returns the characters of a text from `start`, counted from 0."""

    def is_in(self, text: Expression, texts: Sequence[str]) -> Expression:
        """Whether a text is one of some."""

    def floor(self, number: Expression) -> Expression:
        """Returns the largest whole number that is not above a float64."""

    def log(self, number: Expression) -> Expression:
        """Returns the natural logarithm as `transforms.natural_log` defines it."""

    def digits(self, number: Expression) -> Expression:
        """Returns a whole number as text."""

    def trimmed(self, text: Expression) -> Expression:
        """Returns a text without blanks around it."""

    def split(self, text: Expression, separator: str) -> Expression:
        """Returns the list of texts between separators; an empty text is a list of itself."""

    def json_list(self, text: Expression) -> Expression:
        """Returns the elements of a JSON list as texts, "" for null; of other texts, none."""

    def each(self, items: Expression, function: Callable[[Expression], Expression]) -> Expression:
        """Returns the list of what a function makes of each text of a list."""

    def every(self, items: Expression, condition: Callable[[Expression], Expression]) -> Expression:
        """Whether a condition holds for every text of a list."""

    def count(self, items: Expression) -> Expression:
        """Returns the number of elements of a list."""

    def filled(self, values: Expression, items: Expression) -> Expression:
        """Returns the elements of a list at whose positions another list has no empty text."""

    def first(self, items: Expression, most: int) -> Expression:
        """Returns the first elements of a list, at most so many."""


@dataclass(frozen=True)
class Check:
    """One condition that good rows satisfy.

    Attributes:
        where: What the message calls the place.
        column: The column whose text the message shows.
        expected: What the message says was expected, with the remedy.
        good: Whether a row satisfies it.
    """

    where: str
    column: str
    expected: str
    good: Expression
