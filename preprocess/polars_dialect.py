"""The operations of `preprocess.dialect` in Polars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl

from preprocess.bag_expressions import JSON_LIST
from preprocess.dialect import Dialect, Expression
from preprocess.transforms import natural_log


class PolarsDialect(Dialect):
    """The operations of `Dialect` as expressions of Polars."""

    def literal(self, value: float | int | str) -> Expression:
        """Returns a constant."""
        return pl.lit(value)

    def where(self, condition: Expression, chosen: Expression, other: Expression) -> Expression:
        """Returns `chosen` where the condition holds and `other` elsewhere."""
        return pl.when(condition).then(chosen).otherwise(other)

    def matches(self, text: Expression, pattern: str) -> Expression:
        """Whether a text matches a regular expression."""
        return text.str.contains(pattern)

    def number(self, text: Expression) -> Expression:
        """Returns the float64 that a text stands for; null if it is no number."""
        return text.cast(pl.Float64, strict=False)

    def piece(self, text: Expression, start: int, length: int) -> Expression:
        """Returns the characters of a text from `start`, counted from 0."""
        return text.str.slice(start, length)

    def is_in(self, text: Expression, texts: Sequence[str]) -> Expression:
        """Whether a text is one of some."""
        return text.is_in(list(texts))

    def floor(self, number: Expression) -> Expression:
        """Returns the largest whole number that is not above a float64."""
        return number.floor()

    def log(self, number: Expression) -> Expression:
        """Returns the natural logarithm with the bits of Java's StrictMath."""
        return number.map_batches(
            lambda values: pl.Series(values.name, natural_log(values.to_numpy())),
            return_dtype=pl.Float64,
        )

    def digits(self, number: Expression) -> Expression:
        """Returns a whole number as text."""
        return number.cast(pl.Int64).cast(pl.String)

    def trimmed(self, text: Expression) -> Expression:
        """Returns a text without blanks around it."""
        return text.str.strip_chars(" \t")

    def split(self, text: Expression, separator: str) -> Expression:
        """Returns the list of texts between separators; an empty text is a list of itself."""
        return text.str.split(separator)

    def json_list(self, text: Expression) -> Expression:
        """Returns the elements of a JSON list as texts, "" for null; of other texts, none."""
        whole = pl.when(text.str.contains(JSON_LIST)).then(text).otherwise(pl.lit("[]"))
        items = whole.str.json_decode(pl.List(pl.String))
        return items.list.eval(pl.element().fill_null(""))

    def each(self, items: Expression, function: Callable[[Expression], Expression]) -> Expression:
        """Returns the list of what a function makes of each text of a list."""
        return items.list.eval(function(pl.element()))

    def every(self, items: Expression, condition: Callable[[Expression], Expression]) -> Expression:
        """Whether a condition holds for every text of a list."""
        return items.list.eval(condition(pl.element()).fill_null(False)).list.all()

    def count(self, items: Expression) -> Expression:
        """Returns the number of elements of a list."""
        return items.list.len()

    def filled(self, values: Expression, items: Expression) -> Expression:
        """Returns the elements of a list at whose positions another list has no empty text."""
        if values is items:
            return items.list.filter(pl.element() != "")
        where = items.list.eval((pl.element() != "").arg_true())
        return values.list.gather(where, null_on_oob=True)

    def first(self, items: Expression, most: int) -> Expression:
        """Returns the first elements of a list, at most so many."""
        return items.list.head(most)


DIALECT = PolarsDialect()
