"""The operations of `preprocess.dialect` in Spark."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pyspark.sql import functions as sf

from preprocess.bag_expressions import JSON_LIST
from preprocess.dialect import Dialect, Expression

OUTER_BLANKS = r"\A[ \t]+|[ \t]+\z"


class SparkDialect(Dialect):
    """The operations of `Dialect` as columns of Spark."""

    def literal(self, value: float | int | str) -> Expression:
        """Returns a constant."""
        return sf.lit(value)

    def where(self, condition: Expression, chosen: Expression, other: Expression) -> Expression:
        """Returns `chosen` where the condition holds and `other` elsewhere."""
        return sf.when(condition, chosen).otherwise(other)

    def matches(self, text: Expression, pattern: str) -> Expression:
        """Whether a text matches a regular expression."""
        return text.rlike(pattern)

    def number(self, text: Expression) -> Expression:
        """Returns the float64 that a text stands for; null if it is no number."""
        return text.try_cast("double")

    def piece(self, text: Expression, start: int, length: int) -> Expression:
        """Returns the characters of a text from `start`, counted from 0."""
        return sf.substring(text, start + 1, length)

    def is_in(self, text: Expression, texts: Sequence[str]) -> Expression:
        """Whether a text is one of some."""
        return text.isin(list(texts))

    def floor(self, number: Expression) -> Expression:
        """Returns the largest whole number that is not above a float64."""
        return sf.floor(number).cast("double")

    def log(self, number: Expression) -> Expression:
        """Returns the natural logarithm of Java's StrictMath."""
        return sf.log(number)

    def digits(self, number: Expression) -> Expression:
        """Returns a whole number as text."""
        return number.cast("bigint").cast("string")

    def trimmed(self, text: Expression) -> Expression:
        """Returns a text without blanks around it."""
        return sf.regexp_replace(text, OUTER_BLANKS, "")

    def split(self, text: Expression, separator: str) -> Expression:
        """Returns the list of texts between separators; an empty text is a list of itself."""
        return sf.split(text, re.escape(separator), -1)

    def json_list(self, text: Expression) -> Expression:
        """Returns the elements of a JSON list as texts, "" for null; of other texts, none."""
        whole = sf.when(text.rlike(JSON_LIST), text).otherwise("[]")
        items = sf.from_json(whole, "array<string>")
        return sf.transform(items, lambda item: sf.coalesce(item, sf.lit("")))

    def each(self, items: Expression, function: Callable[[Expression], Expression]) -> Expression:
        """Returns the list of what a function makes of each text of a list."""
        return sf.transform(items, lambda item: function(item))

    def every(self, items: Expression, condition: Callable[[Expression], Expression]) -> Expression:
        """Whether a condition holds for every text of a list."""
        return sf.forall(items, lambda item: sf.coalesce(condition(item), sf.lit(False)))

    def count(self, items: Expression) -> Expression:
        """Returns the number of elements of a list."""
        return sf.size(items)

    def filled(self, values: Expression, items: Expression) -> Expression:
        """Returns the elements of a list at whose positions another list has no empty text."""
        if values is items:
            return sf.filter(items, lambda item: item != "")
        # A lambda that looked up the other list would make it anew for each element.
        chosen = sf.zip_with(values, items, lambda value, item: sf.when(item != "", value))
        return sf.filter(chosen, lambda value: value.isNotNull())

    def first(self, items: Expression, most: int) -> Expression:
        """Returns the first elements of a list, at most so many."""
        return sf.slice(items, 1, most)


DIALECT = SparkDialect()
