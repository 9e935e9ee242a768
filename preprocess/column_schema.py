"""Reads schema files that describe columns as they are; `preprocess.user_schema` reads the others.

The keys are those of `docs/preprocessing.md`, section "Any log". This module must not know how
columns become numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from preprocess.bag_columns import BAG_KEYS, bag_rule, bags_last
from preprocess.columns import (
    HASH,
    HOUR,
    LOG,
    MEAN,
    MEDIAN,
    NUMBER,
    PLAIN,
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
from preprocess.hashed_ids import says_hash
from preprocess.schema import HEX, INTEGER, TEXT
from preprocess.schema_keys import choice, entries, refuse_unknown
from preprocess.splits import BY_COLUMN, BY_TIME

FORMATS = {"tsv": "\t", "csv": ",", "parquet": "\t", "jsonl": "\n"}
"""The delimiter of each format unless the schema has another; Parquet rows become tab-separated."""

OWN_KEYS = {"dense_type", "delimiter", "quoted", "trim", "absent"}
"""Keys of such schemas alone."""

_KEYS = OWN_KEYS | {
    "format", "header", "columns", "label", "dense", "categorical", "threshold", "ids",
    "split",
}  # fmt: skip
_LABEL = {"name", "above", "positive", "negative"}
_DENSE = {"name", "column", "type", "transform", "offset", "clip", "buckets", "missing"}
CATEGORICAL_KEYS = {"name", "column", "type", "ids", "threshold", "modulo"} | BAG_KEYS
_HASHED = (TEXT, INTEGER, HEX)


def describes_columns(content: Mapping[str, Any]) -> bool:
    """Whether a schema file describes columns as they are: it says `dense_type: float32`."""
    return "dense_type" in content


def log_columns(content: Mapping[str, Any], split: Mapping[str, Any]) -> LogColumns:
    """Returns the columns that a schema file describes.

    Args:
        content: The content of the file.
        split: Its key `split`.

    Raises:
        ValueError: The content is malformed; the message names the key.
    """
    refuse_unknown("keys: ", content, _KEYS)
    choice(content, "dense_type", ("float32",), "float32")
    log_format = choice(content, "format", tuple(FORMATS), "tsv")
    dense = [_dense(entry) for entry in entries(content, "dense", _DENSE)]
    delimiter = _delimiter(content, log_format)
    text = log_format in ("tsv", "csv")
    quoted = choice(content, "quoted", (True, False), log_format == "csv") and text
    unquoted = delimiter if text and not quoted else ""
    categories = [
        _category(entry, log_format, unquoted)
        for entry in bags_last(entries(content, "categorical", CATEGORICAL_KEYS))
    ]
    for key, columns, remedy in (
        ("dense", dense, "give numbers, the hour of a time, or add a column of zeros to the log"),
        ("categorical", categories, "give texts, ids, or a number column with type: value"),
    ):
        if not columns:
            raise ValueError(f"{key}: expected at least one column, found none; {remedy}")
    every: list[DenseColumn | CategoryColumn] = [*dense, *categories]
    features = [column.name for column in every]
    _refuse_repeated(features, "features", "give one of them another name and say its column")
    label = _label(content.get("label"))
    by_row = split.get("by") in (BY_COLUMN, BY_TIME)
    decides = str(split.get("column")) if by_row else None
    used = [label.column, *(column.column for column in every)]
    used += [column.bag.weights for column in categories if column.bag and column.bag.weights]
    if label.column in used[1:]:
        raise ValueError(
            f"label: expected a column that no feature uses, found {label.column!r}; remove the"
            " feature, which would give the answer away"
        )
    if decides is not None:
        used.append(decides)
    return LogColumns(
        _names(content, log_format, used),
        log_format,
        delimiter,
        choice(content, "header", (True, False), False) and text,
        quoted,
        choice(content, "trim", (True, False), True),
        _texts(content, "absent", "a list of texts that stand for no value"),
        label,
        tuple(dense),
        tuple(categories),
        decides,
    )


def _names(content: Mapping[str, Any], log_format: str, used: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns of the file; of Parquet and JSON those that are used, each once."""
    if "columns" not in content and log_format in ("tsv", "csv"):
        raise ValueError(
            "columns: expected all columns in the order of the file, found none; list their names"
        )
    given = content.get("columns", list(dict.fromkeys(used)))
    if not isinstance(given, list):
        raise ValueError(f"columns: expected a list of names, found {given!r}; write [a, b]")
    names = [str(name) for name in given]
    _refuse_repeated(names, "columns", "give each its own name")
    absent = [name for name in dict.fromkeys(used) if name not in names]
    if absent:
        raise ValueError(
            f"columns: expected {', '.join(absent)} among them, found {names}; add what is absent,"
            " or correct the feature's column"
        )
    if log_format in ("tsv", "csv"):
        return tuple(names)
    return tuple(dict.fromkeys(used))


def _refuse_repeated(names: Sequence[str], what: str, remedy: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"expected {what} of different names, found {repeated[0]!r} twice; {remedy}"
        )


def _delimiter(content: Mapping[str, Any], log_format: str) -> str:
    delimiter = content.get("delimiter", FORMATS[log_format])
    good = isinstance(delimiter, str) and len(delimiter) == 1 and delimiter.isascii()
    if not good or delimiter.isalnum() or delimiter in '".+- \r' or (
        "delimiter" in content and (log_format not in ("tsv", "csv") or delimiter == "\n")
    ):  # fmt: skip
        raise ValueError(
            "delimiter: expected one character such as ';' or '|', with format tsv or csv, found"
            f" {delimiter!r}; correct it, or leave it out"
        )
    return str(delimiter)


def _label(given: Any) -> LabelColumn:
    if isinstance(given, list):
        raise ValueError(
            f"label: expected one column, found {len(given)}: a model has one label; choose one,"
            " and run preprocess once for each"
        )
    if not isinstance(given, dict):
        if given is None:
            raise ValueError("label: expected the name of a column, found none; give label: NAME")
        return LabelColumn(str(given))
    refuse_unknown("label: ", given, _LABEL)
    if "name" not in given:
        raise ValueError(f"label: expected a name among its keys, found {given}; add name: COLUMN")
    name = str(given["name"])
    if "above" in given:
        if "positive" in given or "negative" in given:
            raise ValueError(
                "label: expected above, or positive and negative, found both; remove one of them"
            )
        return LabelColumn(
            name, above=_float("label: above", given["above"]), positive=(), negative=()
        )
    positive = _texts(given, "positive", "the texts of label 1")
    negative = _texts(given, "negative", "the texts of label 0")
    if negative and not positive:
        raise ValueError(
            "label: expected the texts of label 1 as positive, found only negative; add positive"
        )
    both = sorted(set(positive) & set(negative))
    if both:
        raise ValueError(
            f"label: expected each text once, found {both[0]!r} in both lists; remove one"
        )
    return (
        LabelColumn(name, positive=positive, negative=negative) if positive else LabelColumn(name)
    )


def _dense(entry: Mapping[str, Any]) -> DenseColumn:
    name = entry["name"]
    where = f"dense column {name}: "
    transform = choice(
        entry, "transform", (PLAIN, "log1p", LOG, STANDARDISE, QUANTILE), PLAIN, where
    )
    for key, owner in (("offset", LOG), ("buckets", QUANTILE)):
        if key in entry and transform != owner:
            raise ValueError(
                f"{where}{key}: expected with transform {owner}, found {transform}; remove it, or"
                " change the transform"
            )
    offset = _float(f"{where}offset", entry.get("offset", 1.0))
    clip = _clip(where, entry.get("clip"))
    if transform in ("log1p", LOG):
        transform = LOG
        # Unless said otherwise, values are raised to where the logarithm is 0.
        clip = clip or (1.0 - offset, 3.4e38)
        if clip[0] + offset < 1e-30:
            raise ValueError(
                f"{where}clip: expected a lowest value above {-offset}, so that ln(x + {offset})"
                f" exists, found {clip[0]}; raise it, or the offset"
            )
    buckets = entry.get("buckets", 10 if transform == QUANTILE else 0)
    if type(buckets) is not int or (transform == QUANTILE and not 2 <= buckets <= 100):
        raise ValueError(
            f"{where}buckets: expected an integer from 2 to 100, found {buckets!r}; correct it"
        )
    missing = entry.get("missing", 0.0)
    if missing not in (MEAN, MEDIAN, REFUSE):
        missing = _float(f"{where}missing: mean, median, refuse or", missing)
    kind = choice(entry, "type", (NUMBER, HOUR, WEEKDAY), NUMBER, where)
    column = str(entry.get("column", name))
    return DenseColumn(name, column, kind, transform, offset, clip, buckets, missing)


def _clip(where: str, given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 2:
        raise ValueError(f"{where}clip: expected [lowest, highest], found {given!r}; give both")
    low, high = (_float(f"{where}clip", value) for value in given)
    if low >= high:
        raise ValueError(f"{where}clip: expected the lowest value first, found {given}; swap them")
    return low, high


def _category(entry: Mapping[str, Any], log_format: str, unquoted_delimiter: str) -> CategoryColumn:
    where = f"categorical column {entry['name']}: "
    kind = choice(entry, "type", (VALUE, *_HASHED, HOUR, WEEKDAY), VALUE, where)
    hashed = says_hash(entry)
    if hashed and kind in (HOUR, WEEKDAY):
        raise ValueError(
            f"{where}ids: expected dictionary with type {kind}, found hash; remove ids and modulo"
        )
    if "modulo" in entry and kind not in _HASHED and not hashed:
        raise ValueError(
            f"{where}modulo: expected with type {', '.join(_HASHED)}, found {kind}; type: text is"
            " the CRC-32 of the text, of which a modulus can be taken, and ids: hash takes one of"
            " any text"
        )
    bag = bag_rule(entry, where, kind, log_format, unquoted_delimiter)
    column = str(entry.get("column", entry["name"]))
    if hashed and kind == VALUE:
        return CategoryColumn(entry["name"], column, HASH, bag, entry["modulo"])
    return CategoryColumn(entry["name"], column, kind, bag)


def _texts(content: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    given = content.get(key, [])
    texts = given if isinstance(given, list) else [given]
    if any(isinstance(text, (dict, list, bool)) or text is None for text in texts):
        raise ValueError(f"{key}: expected {what}, in quotes, found {given!r}; quote them")
    return tuple(str(text) for text in texts)


def _float(where: str, value: Any) -> float:
    # YAML reads 1e-3 as text, because it lacks a point.
    try:
        number = float(value) if not isinstance(value, (bool, list, dict)) else None
    except (TypeError, ValueError):
        number = None
    if number is None or not abs(number) < 3.5e38:
        raise ValueError(f"{where}: expected a number, found {value!r}; correct it")
    return number
