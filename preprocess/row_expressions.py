"""The rules of columns as expressions over text, written once for both engines.

A dialect names the few operations whose spelling differs between Polars and Spark; arithmetic and
logic are operators of both. Every number is computed in float64 by operations that IEEE 754 defines
exactly, and by one logarithm, so that both engines give the same bits. Fields are texts, never
null. This module must not know about files.
"""

from __future__ import annotations

from preprocess.bag_expressions import bag_checks
from preprocess.columns import (
    HOUR,
    LOG,
    NUMBER,
    QUANTILE,
    REFUSE,
    STANDARDISE,
    WEEKDAY,
    CategoryColumn,
    DenseColumn,
    LabelColumn,
    LogColumns,
)
from preprocess.dialect import Check, Dialect, Expression
from preprocess.kind_checks import DATE_PATTERN, LARGEST, NUMBER_PATTERN, kind_check
from preprocess.splits import BY_TIME, NAMES, TEST, VALIDATION, SplitRule
from preprocess.transforms import DenseStatistics


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
        expected, good = kind_check(dialect, dense.kind, text)
        if dense.missing == REFUSE:
            expected += ", not an empty field (missing: refuse)"
            good = good & (text != "")
        else:
            good = good | (text == "")
        found.append(Check(f"column {dense.column}", dense.column, expected, good))
    for category in log.categories:
        if category.bag:
            found += bag_checks(dialect, log, category, fields)
            continue
        if category.any_text:
            continue
        text = fields[category.column]
        expected, good = kind_check(dialect, category.kind, text)
        good = good | (text == "")
        found.append(Check(f"column {category.column}", category.column, expected, good))
    return found


def _label_check(dialect: Dialect, label: LabelColumn, text: Expression) -> Check:
    if label.above is not None:
        expected, good = kind_check(dialect, NUMBER, text)
        return Check("label", label.column, expected, good)
    if not label.negative:
        return Check("label", label.column, "a value", text != "")
    expected = f"one of {', '.join((*label.negative, *label.positive))}"
    if label == LabelColumn(label.column):
        expected = "0 or 1 (for other labels, give positive or above in the schema)"
    good = dialect.is_in(text, (*label.positive, *label.negative))
    return Check("label", label.column, expected, good)


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
    x = _clipped(dialect, x, -LARGEST, LARGEST)
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
                chosen = dialect.matches(text, NUMBER_PATTERN) & (dialect.number(text) >= first)
            except ValueError:
                chosen = text >= dialect.literal(given[0])
        else:
            chosen = dialect.is_in(text, given)
        found = dialect.where(chosen, dialect.literal(NAMES.index(name)), found)
    return found


def time_part(dialect: Dialect, kind: str, text: Expression) -> Expression:
    """Returns the hour (0 - 23) or the weekday (0 is Monday) of a time in UTC, as float64."""
    seconds = dialect.number(text)
    is_date = dialect.matches(text, DATE_PATTERN)
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
