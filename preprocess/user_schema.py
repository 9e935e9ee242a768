"""Reads the YAML file that describes a user's own logs; `schema_example.yaml` shows every key.

It turns the file into a schema, rules and a split, and must not know what these are used for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preprocess.bag_columns import BAG_KEYS, bags_last
from preprocess.column_schema import (
    CATEGORICAL_KEYS,
    OWN_KEYS,
    describes_columns,
    log_columns,
)
from preprocess.hashed_ids import hashed_tables
from preprocess.rules import GENERIC, Rules
from preprocess.schema import (
    CATEGORICAL,
    DENSE,
    FORMATS,
    HEX,
    IGNORED,
    INTEGER,
    LABEL,
    SPLIT,
    TEXT,
    LogField,
    Schema,
)
from preprocess.schema_keys import choice, entries, refuse_unknown
from preprocess.splits import BY_COLUMN, BY_TIME, SplitRule

_KEYS = {
    "format", "header", "columns", "label", "dense", "categorical", "lowest", "threshold", "ids",
    "missing", "dense_log_offset", "split",
}  # fmt: skip
_NUMBER_LIMITS = {
    "lowest": (-(2**31), 2**31 - 1),
    "threshold": (0, 2**62),
    "modulo": (1, 2**31 - 1),
}


@dataclass(frozen=True)
class UserSchema:
    """The content of a schema file."""

    schema: Schema
    rules: Rules
    split: SplitRule


def read_user_schema(path: Path) -> UserSchema:
    """Reads a schema file.

    Raises:
        ValueError: The file is malformed; the message names the file and the key.
        OSError: The file cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return parse_user_schema(content)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path}: not valid YAML ({' '.join(str(error).split())}); correct that place"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_user_schema(content: Any) -> UserSchema:
    """Checks the content of a schema file and converts it.

    Raises:
        ValueError: The content is malformed; the message names the key.
    """
    if not isinstance(content, dict):
        raise ValueError(
            f"expected keys such as label and categorical, found {content!r}; start with"
            " python3 -m preprocess.guess"
        )
    split = _mapping(content.get("split", {"by": "fraction"}))
    if describes_columns(content):
        columns = log_columns(content, split)
        categorical = bags_last(entries(content, "categorical", CATEGORICAL_KEYS))
        return UserSchema(
            columns.record_schema(), _column_rules(content, categorical), _split(split, times=True)
        )
    _refuse_column_keys(content)
    refuse_unknown("keys: ", content, _KEYS)
    dense = entries(content, "dense", {"name", "lowest"})
    categorical = entries(content, "categorical", {"name", "type", "ids", "threshold", "modulo"})
    if not categorical:
        raise ValueError("categorical: expected at least one column, found none; add one")
    schema = _schema(content, dense, categorical, split)
    rules = _rules(content, dense, categorical)
    _check_logarithms(rules, [entry["name"] for entry in dense])
    return UserSchema(schema, rules, _split(split))


def _refuse_column_keys(content: Mapping[str, Any]) -> None:
    """Refuses what only schemas with `dense_type` can say, with that as the remedy."""
    found = sorted(OWN_KEYS & set(content))
    if isinstance(content.get("label"), (dict, list)):
        found.append("a label with keys")
    if content.get("format") == "jsonl":
        found.append("format jsonl")
    for entry in content.get("categorical") or []:
        found += sorted(BAG_KEYS & set(entry if isinstance(entry, dict) else ()))
    if _mapping(content.get("split", {})).get("by") == BY_TIME:
        found.append("split by time")
    if found:
        raise ValueError(
            f"dense_type: expected float32 beside {found[0]}, found none; add dense_type: float32"
        )


def _column_rules(content: Mapping[str, Any], categorical: list[Mapping[str, Any]]) -> Rules:
    """Makes the rules of a log whose dense features are final float32 values."""
    return Rules(
        GENERIC,
        1.0,
        _NUMBER_LIMITS["lowest"][0],
        missing_is_value=False,  # the value 0 is that of the first text, or of an hour
        special_id=True,
        by_count=choice(content, "ids", ("appearance", "count"), "appearance") == "count",
        frequency_threshold=_number(content, "threshold", 0),
        thresholds=_numbers(categorical, "threshold"),
        moduli=_numbers(categorical, "modulo"),
        hashed=hashed_tables(categorical),
    )


def _schema(
    content: Mapping[str, Any],
    dense: list[Mapping[str, Any]],
    categorical: list[Mapping[str, Any]],
    split: Mapping[str, Any],
) -> Schema:
    """Assigns a role to each column of the file, and checks that every role has its column."""
    log_format = choice(content, "format", tuple(FORMATS), "tsv")
    roles: dict[str, tuple[str, str]] = {str(content.get("label")): (LABEL, INTEGER)}
    roles.update({entry["name"]: (DENSE, INTEGER) for entry in dense})
    for entry in categorical:
        roles[entry["name"]] = (CATEGORICAL, choice(entry, "type", (HEX, INTEGER, TEXT), HEX))
    if split.get("by") == BY_COLUMN:
        roles[str(split.get("column"))] = (SPLIT, TEXT)
    given = 1 + len(dense) + len(categorical) + (split.get("by") == BY_COLUMN)
    columns = [str(name) for name in content.get("columns", roles)]
    if len(roles) != given or len(set(columns)) != len(columns):
        raise ValueError(
            "expected each column once, with one role, found one that is repeated; remove it, or"
            " say dense_type: float32, with which features may share a column"
        )
    absent = [name for name in roles if name not in columns]
    if absent:
        raise ValueError(
            f"columns: expected {', '.join(absent)} among them, found {columns}; add what is absent"
        )
    if log_format != "parquet" and "columns" not in content:
        raise ValueError(
            "columns: expected all columns in the order of the file, found none; list their names"
        )
    if log_format == "parquet":
        columns = [name for name in columns if name in roles]
    fields = tuple(LogField(name, *roles.get(name, (IGNORED, TEXT))) for name in columns)
    return Schema(
        fields,
        tuple(columns.index(entry["name"]) for entry in dense),
        tuple(columns.index(entry["name"]) for entry in categorical),
        log_format,
        choice(content, "header", (True, False), False) and log_format != "parquet",
    )


def _rules(
    content: Mapping[str, Any],
    dense: list[Mapping[str, Any]],
    categorical: list[Mapping[str, Any]],
) -> Rules:
    """Makes the rules from the keys of the file and of its columns."""
    value = choice(content, "missing", ("value", "special"), "value") == "value"
    offset = content.get("dense_log_offset", 1.0)
    if not isinstance(offset, (int, float)) or isinstance(offset, bool):
        raise ValueError(f"dense_log_offset: expected a number, found {offset!r}; correct it")
    return Rules(
        GENERIC,
        float(offset),
        _number(content, "lowest", 0),
        missing_is_value=value,
        special_id=not value,
        by_count=choice(content, "ids", ("appearance", "count"), "appearance") == "count",
        frequency_threshold=_number(content, "threshold", 0),
        lowest_by_column=_numbers(dense, "lowest"),
        thresholds=_numbers(categorical, "threshold"),
        moduli=_numbers(categorical, "modulo"),
        hashed=hashed_tables(categorical),
    )


def _check_logarithms(rules: Rules, dense: list[str]) -> None:
    """Checks that ln(x + offset) is finite for the lowest value of every dense column."""
    for column, name in enumerate(dense):
        lowest = rules.lowest(column)
        if not -lowest < rules.dense_log_offset < math.inf:
            raise ValueError(
                f"dense_log_offset: expected a finite number above {-lowest}, as values of column"
                f" {name} may be {lowest}, found {rules.dense_log_offset}; raise it, or the"
                " column's lowest"
            )


def _split(split: Mapping[str, Any], times: bool = False) -> SplitRule:
    """Makes the split; by time only if `times`, as only then are the columns read that can be."""
    ways = ("fraction", "file", BY_COLUMN, *((BY_TIME,) if times else ()))
    by = choice(split, "by", ways, "fraction")
    refuse_unknown("split: ", split, {"by", "column", "test", "validation"})
    if by == "fraction":
        shares = {"test": 0.1, "validation": 0.0}
        for part, usual in shares.items():
            given = split.get(part, usual)
            if isinstance(given, bool) or not isinstance(given, (int, float)):
                raise ValueError(
                    f"split: {part}: expected a fraction such as 0.1, found {given!r}; correct it"
                )
            shares[part] = float(given)
        return SplitRule(by, shares["test"], shares["validation"])
    names = {}
    for part in ("test", "validation"):
        given = split.get(part, [])
        names[part] = tuple(str(name) for name in (given if isinstance(given, list) else [given]))
        if by == BY_TIME and len(names[part]) > 1:
            raise ValueError(
                f"split: {part}: expected the time of its first row, found {given}; give one time"
            )
    return SplitRule(by, names["test"], names["validation"])


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(
            f"split: expected keys such as by and test, found {value!r}; write {{by: fraction}}"
        )
    return value


def _number(content: Mapping[str, Any], key: str, default: int) -> int:
    value = content.get(key, default)
    low, high = _NUMBER_LIMITS[key]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(
            f"{key}: expected an integer from {low} to {high}, found {value!r}; correct it"
        )
    return value


def _numbers(entries: list[Mapping[str, Any]], key: str) -> dict[int, int] | None:
    found = {i: _number(entry, key, 0) for i, entry in enumerate(entries) if key in entry}
    return found or None
