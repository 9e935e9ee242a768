"""Reads the keys by which a categorical column of a schema file becomes a bag of ids.

`preprocess.column_schema` reads the others. This module must not know how fields become ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlrm.formats.bags import POOLINGS
from preprocess.columns import HOUR, UNIT_SEPARATOR, WEEKDAY, BagRule
from preprocess.schema_keys import choice

BAG_KEYS = {"max_ids", "separator", "pooling", "weights"}
"""Keys of columns with bags alone."""

_MOST_IDS = 65_536  # Spark stages bags at their full size
_LINE_ENDS = "\r\n"


def bags_last(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the categorical columns in the order of their tables: those with bags come last."""
    return sorted(entries, key=lambda entry: "max_ids" in entry)


def bag_rule(
    entry: Mapping[str, Any], where: str, kind: str, log_format: str, unquoted_delimiter: str
) -> BagRule | None:
    """Returns how a categorical column becomes a bag; None if it holds one id.

    Args:
        entry: The keys of the column.
        where: What messages begin with.
        kind: The type of the column.
        log_format: The format of the log.
        unquoted_delimiter: The character that no field can hold; "" if quotes allow it.

    Raises:
        ValueError: A key has a wrong value, or is there without `max_ids`.
    """
    found = sorted(BAG_KEYS & set(entry))
    if not found:
        return None
    most = entry.get("max_ids")
    if "max_ids" not in found:
        raise ValueError(
            f"{where}max_ids: expected beside {found[0]}, found none; give the most ids that a"
            " bag may hold"
        )
    if type(most) is not int or not 1 <= most <= _MOST_IDS:
        raise ValueError(
            f"{where}max_ids: expected an integer from 1 to {_MOST_IDS}, found {most!r}; give the"
            " most ids that a bag may hold"
        )
    if kind in (HOUR, WEEKDAY):
        raise ValueError(
            f"{where}type: expected value, text, integer or hex for a bag of ids, found {kind};"
            " leave max_ids out"
        )
    separator = _separator(entry, where, log_format, unquoted_delimiter)
    pooling = choice(entry, "pooling", POOLINGS, "sum", where)
    weights = entry.get("weights", "")
    if not isinstance(weights, str) or ("weights" in entry and not weights):
        raise ValueError(
            f"{where}weights: expected the name of a column, found {weights!r}; leave it out if"
            " ids have no weights"
        )
    if weights == str(entry.get("column", entry["name"])):
        raise ValueError(
            f"{where}weights: expected another column than that of the ids, found {weights!r};"
            " leave it out if ids have no weights"
        )
    return BagRule(separator, most, pooling, weights)


def _separator(
    entry: Mapping[str, Any], where: str, log_format: str, unquoted_delimiter: str
) -> str:
    """Returns the text between two ids; without one, JSON and Parquet have lists."""
    if "separator" not in entry:
        if log_format in ("tsv", "csv"):
            raise ValueError(
                f"{where}separator: expected with format {log_format}, found none; give the text"
                " between two ids, such as '|'"
            )
        return UNIT_SEPARATOR if log_format == "parquet" else ""
    separator = entry["separator"]
    if not isinstance(separator, str) or not separator or set(separator) & set(_LINE_ENDS):
        raise ValueError(
            f"{where}separator: expected the text between two ids, found {separator!r}; give one"
            " in quotes, such as '|'"
        )
    if unquoted_delimiter and unquoted_delimiter in separator:
        raise ValueError(
            f"{where}separator: expected another text than the delimiter between fields, found"
            f" {separator!r}; choose another, or put such fields in quotes and say quoted: true"
        )
    return separator
