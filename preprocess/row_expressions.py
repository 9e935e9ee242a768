"""The rules of columns as expressions over text, written once for both engines.

A dialect names the few operations whose spelling differs between Polars and Spark; arithmetic and
logic are operators of both. Every number is computed in float64 by operations that IEEE 754 defines
exactly, and by one logarithm, so that both engines give the same bits. Fields are texts, never
null. This module must not know about files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from preprocess.columns import (
    HOUR,
    LOG,
    NUMBER,
    QUANTILE,
    REFUSE,
    STANDARDISE,
    VALUE,
    WEEKDAY,
    CategoryColumn,
    DenseColumn,
    LabelColumn,
    LogColumns,
)
from preprocess.schema import HEX, INTEGER, TEXT
from preprocess.splits import BY_TIME, NAMES, TEST, VALIDATION, SplitRule
from preprocess.transforms import DenseStatistics

_NUMBER = r"\A[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?\z"
_DATE = r"\A[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])([ T]([01][0-9]|2[0-3]):[^\n]*)?\z"
_SECONDS = r"\A[0-9]{1,11}(\.[0-9]*)?\z"
_INTEGER = r"\A0*[0-9]{1,10}\z"
_HEX = r"\A[0-9a-fA-F]{1,8}\z"
_LARGEST = 3.4028234663852886e38  # float32
_LARGEST_ID = float(2**32 - 1)

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


def checks(dialect: Dialect, log: LogColumns, fields: dict[str, Expression]) -> list[Check]:
    """Returns the conditions of a good row, in the order in which faults are named.

    Args:
        dialect: The engine's operations.
        log: The columns.
        fields: The text of each column, by name; "" where it has no value.
    """
    found = [_label_check(dialect, log.label, fields[log.label.column])]
    for dense in log.dense:
        text = fields[dense.column]
        expected, good = _kind_check(dialect, dense.kind, text)
        if dense.missing == REFUSE:
            expected += ", not an empty field (missing: refuse)"
            good = good & (text != "")
        else:
            good = good | (text == "")
        found.append(Check(f"column {dense.column}", dense.column, expected, good))
    for category in log.categories:
        if category.kind in (VALUE, TEXT):
            continue
        text = fields[category.column]
        expected, good = _kind_check(dialect, category.kind, text)
        good = good | (text == "")
        found.append(Check(f"column {category.column}", category.column, expected, good))
    return found


def _label_check(dialect: Dialect, label: LabelColumn, text: Expression) -> Check:
    if label.above is not None:
        expected, good = _kind_check(dialect, NUMBER, text)
        return Check("label", label.column, expected, good)
    if not label.negative:
        return Check("label", label.column, "a value", text != "")
    expected = f"one of {', '.join((*label.negative, *label.positive))}"
    if label == LabelColumn(label.column):
        expected = "0 or 1 (for other labels, give positive or above in the schema)"
    good = dialect.is_in(text, (*label.positive, *label.negative))
    return Check("label", label.column, expected, good)


def _kind_check(dialect: Dialect, kind: str, text: Expression) -> tuple[str, Expression]:
    """Returns what a text of a kind must be, in words and as a condition."""
    if kind == NUMBER:
        number = dialect.number(text)
        good = dialect.matches(text, _NUMBER) & (number <= _LARGEST) & (number >= -_LARGEST)
        return "a float32 number (list texts such as NA under absent)", good
    if kind == INTEGER:
        good = dialect.matches(text, _INTEGER) & (dialect.number(text) <= _LARGEST_ID)
        return "a 32-bit integer (type: value takes any text)", good
    if kind == HEX:
        expected = "at most 8 hexadecimal digits (type: value takes any text)"
        return expected, dialect.matches(text, _HEX)
    good = dialect.matches(text, _DATE) | dialect.matches(text, _SECONDS)
    return "a time: seconds since 1970 or YYYY-MM-DD HH:MM", good


def label(dialect: Dialect, column: LabelColumn, text: Expression) -> Expression:
    """Returns the label of a row, 0 or 1."""
    if column.above is not None:
        positive = dialect.number(text) > column.above
    else:
        positive = dialect.is_in(text, column.positive)
    return dialect.where(positive, dialect.literal(1), dialect.literal(0))


def raw_number(
    dialect: Dialect, column: DenseColumn, text: Expression, missing: float
) -> Expression:
    """Returns x of a dense column before its transform, with `missing` where there is none."""
    x = dialect.number(text) if column.kind == NUMBER else time_part(dialect, column.kind, text)
    return dialect.where(text == "", dialect.literal(missing), x)


def dense(
    dialect: Dialect, column: DenseColumn, text: Expression, learnt: DenseStatistics
) -> Expression:
    """Returns the feature of a dense column in float64, within the range of float32."""
    x = raw_number(dialect, column, text, learnt.missing)
    if column.clip:
        x = _clipped(dialect, x, *column.clip)
    if column.transform == LOG:
        x = dialect.log(x + column.offset)
    elif column.transform == STANDARDISE:
        x = (x - learnt.mean) / learnt.deviation
    elif column.transform == QUANTILE:
        reached = dialect.literal(0.0)
        for edge in learnt.edges:
            reached = reached + dialect.where(x >= edge, dialect.literal(1.0), dialect.literal(0.0))
        x = reached / float(max(1, len(learnt.edges)))
    x = _clipped(dialect, x, -_LARGEST, _LARGEST)
    return dialect.where(x == 0.0, dialect.literal(0.0), x)  # not -0.0


def _clipped(dialect: Dialect, x: Expression, low: float, high: float) -> Expression:
    x = dialect.where(x < low, dialect.literal(low), x)
    return dialect.where(x > high, dialect.literal(high), x)


def category(dialect: Dialect, column: CategoryColumn, text: Expression) -> Expression:
    """Returns the text that decides the value of a categorical column; "" where it is missing."""
    if column.kind not in (HOUR, WEEKDAY):
        return text
    part = dialect.digits(time_part(dialect, column.kind, text))
    return dialect.where(text == "", dialect.literal(""), part)


def tag(dialect: Dialect, split: SplitRule, text: Expression) -> Expression:
    """Returns the split of a row as an index into `splits.NAMES`, from the text of its column."""
    found = dialect.literal(0)
    for name, given in ((VALIDATION, split.validation), (TEST, split.test)):
        if not given:
            continue
        assert isinstance(given, tuple)
        if split.by == BY_TIME:
            # Numbers are compared as such; dates in ISO's order of digits as texts.
            try:
                first = float(given[0])
                chosen = dialect.matches(text, _NUMBER) & (dialect.number(text) >= first)
            except ValueError:
                chosen = text >= dialect.literal(given[0])
        else:
            chosen = dialect.is_in(text, given)
        found = dialect.where(chosen, dialect.literal(NAMES.index(name)), found)
    return found


def time_part(dialect: Dialect, kind: str, text: Expression) -> Expression:
    """Returns the hour (0 - 23) or the weekday (0 is Monday) of a time in UTC, as float64."""
    seconds = dialect.number(text)
    is_date = dialect.matches(text, _DATE)
    if kind == HOUR:
        hours = dialect.floor(seconds / 3600.0)
        digits = dialect.piece(text, 11, 2)
        hour = dialect.where(digits == "", dialect.literal(0.0), dialect.number(digits))
        return dialect.where(is_date, hour, hours - 24.0 * dialect.floor(hours / 24.0))
    days = dialect.where(is_date, _days(dialect, text), dialect.floor(seconds / 86400.0))
    # Day 0, 1 January 1970, was a Thursday.
    return days + 3.0 - 7.0 * dialect.floor((days + 3.0) / 7.0)


def _days(dialect: Dialect, date: Expression) -> Expression:
    """Returns the days from 1970-01-01 to a date of the Gregorian calendar.

    Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil.
    """
    month = dialect.number(dialect.piece(date, 5, 2))
    early = dialect.where(month <= 2.0, dialect.literal(1.0), dialect.literal(0.0))
    year = dialect.number(dialect.piece(date, 0, 4)) - early
    era = dialect.floor(year / 400.0)
    year_of_era = year - era * 400.0
    day_of_year = (
        dialect.floor((153.0 * (month - 3.0 + 12.0 * early) + 2.0) / 5.0)
        + dialect.number(dialect.piece(date, 8, 2))
        - 1.0
    )
    leap_days = dialect.floor(year_of_era / 4.0) - dialect.floor(year_of_era / 100.0)
    return era * 146097.0 + year_of_era * 365.0 + leap_days + day_of_year - 719468.0
