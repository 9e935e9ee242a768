"""Guesses what the columns of a log are from a sample of their texts, and says why.

This module must not know about files or the form of a schema beyond the keys of a column.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from preprocess.columns import UNIT_SEPARATOR

_ABSENT = ("?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", r"\N")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_DATE = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]([ T][0-2][0-9]:.*)?")
_LABELS = re.compile(r"(?i)(label|click|clicked|target|income|class|y|rating|converted|buy)[_0-9]*")
_IDS = re.compile(r"(?i).*(id|user|item|movie|ad|site|hash|code|zip)([_0-9].*)?|c[0-9]+")
_TIMES = re.compile(r"(?i).*(time|date|stamp|when|ts).*")
_POSITIVE = re.compile(r"(?i)(1|1\.0|true|yes|y|t|click.*|>.*|pos.*)\.?")
_FEW = 12
_SEPARATORS = "|;,"
_LONGEST_ITEM = 40
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_DENSE_NAME = re.compile(r"(?i)i[0-9]+")


@dataclass(frozen=True)
class ColumnGuess:
    """A feature: its name, its other keys as they stand in a schema, and the reason."""

    name: str
    keys: str
    reason: str


@dataclass
class Guess:
    """The guessed roles of all columns.

    Attributes:
        label: The value of the key `label`; None if no column can be one.
        label_reason: Why.
        absent: Texts that stand for no value.
        dense: The dense features.
        categorical: The categorical features.
        unused: Names of columns without a role, with the reason.
    """

    label: str | None = None
    label_reason: str = ""
    absent: list[str] = field(default_factory=list)
    dense: list[ColumnGuess] = field(default_factory=list)
    categorical: list[ColumnGuess] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)


def is_number(text: str) -> bool:
    """Whether a text is a decimal number, with an exponent or without."""
    return _NUMBER.fullmatch(text) is not None


def guess_columns(
    names: Sequence[str], rows: Sequence[Sequence[str]], lists: Collection[str] = ()
) -> Guess:
    """Guesses the roles of columns.

    Args:
        names: The columns.
        rows: The fields of each row.
        lists: The columns of lists, whose elements `UNIT_SEPARATOR` separates.
    """
    guess = Guess()
    columns = {name: Counter(row[i] for row in rows) for i, name in enumerate(names)}
    guess.absent = [text for text in _ABSENT if any(text in texts for texts in columns.values())]
    for texts in columns.values():
        for text in ("", *guess.absent):
            texts.pop(text, None)
    label = _label_column(columns)
    if label is not None:
        guess.label, guess.label_reason = _label(label, columns[label])
    for name, texts in columns.items():
        if name != label:
            _feature(guess, name, texts, name in lists)
    if guess.dense and not guess.categorical:
        names = [column.name for column in guess.dense if column.name in columns]
        name = min(names, key=lambda name: len(columns[name]))
        keys = f", column: {json.dumps(name, ensure_ascii=False)}, type: value"
        reason = "a model needs one; this column has the fewest values"
        guess.categorical.append(ColumnGuess(f"{name} value", keys, reason))
    return guess


def _label_column(columns: dict[str, Counter[str]]) -> str | None:
    """Returns the column that is most likely the label: by name, then by its two values."""
    two = [name for name, texts in columns.items() if len(set(map(_bare, texts))) == 2]
    ratings = [
        name
        for name, texts in columns.items()
        if 2 < len(texts) <= _FEW and all(map(is_number, texts)) and _LABELS.fullmatch(name)
    ]
    named = [name for name in (*two, *ratings) if _LABELS.fullmatch(name)]
    zero_one = [name for name in two if _zero_one(columns[name])]
    # Files without names often have the label last.
    signed = [name for name in reversed(two) if any(map(_POSITIVE.fullmatch, columns[name]))]
    return next(iter((*named, *zero_one, *signed, *reversed(two))), None)


def _zero_one(texts: Counter[str]) -> bool:
    return all(is_number(text) for text in texts) and {float(text) for text in texts} == {0.0, 1.0}


def _label(name: str, texts: Counter[str]) -> tuple[str, str]:
    shown = json.dumps(name, ensure_ascii=False)
    if len(texts) == 2 and _zero_one(texts):
        return shown, "0 and 1"
    if len(set(map(_bare, texts))) > 2:
        middle = sorted(float(text) for text in texts)[(len(texts) - 1) // 2]
        return f"{{name: {shown}, above: {middle:g}}}", "ratings: 1 above this one"
    bare: Counter[str] = Counter()
    for text, count in texts.items():
        bare[_bare(text)] += count
    by_count = [text for text, _ in bare.most_common()]
    # The rarer value is what a model should find, unless a name says it.
    positive = next((text for text in by_count if _POSITIVE.fullmatch(text)), by_count[-1])
    negative = next(text for text in by_count if text != positive)
    sets = [_with_dot(text) for text in (positive, negative)]
    return f"{{name: {shown}, positive: {sets[0]}, negative: {sets[1]}}}", "two texts"


def _bare(text: str) -> str:
    """Returns a text without the full stop that some files have behind their labels."""
    return text if is_number(text) else text.removesuffix(".")


def _with_dot(text: str) -> str:
    """Returns a text and its form with a full stop, which other files may have."""
    forms = [text] if is_number(text) else [text, f"{text}."]
    return json.dumps(forms, ensure_ascii=False)


def _feature(guess: Guess, name: str, texts: Counter[str], is_list: bool) -> None:
    """Adds a column to the dense or categorical features, or to those without a role."""
    if len(texts) < 2:
        guess.unused.append((name, "one value" if texts else "no value"))
        return
    separator = UNIT_SEPARATOR if is_list else _separator(texts)
    if separator:
        guess.categorical.append(_bag(name, texts, separator))
        return
    shown = json.dumps(name, ensure_ascii=False)
    is_time = all(map(_DATE.fullmatch, texts)) or (
        _TIMES.fullmatch(name) is not None and all(re.fullmatch(r"[0-9]{9,10}", t) for t in texts)
    )
    if is_time:
        for kind, features in (("hour", guess.dense), ("weekday", guess.categorical)):
            keys = f", column: {shown}, type: {kind}"
            features.append(ColumnGuess(f"{name} {kind}", keys, "of a time, in UTC"))
        return
    numbers = all(map(is_number, texts))
    whole = numbers and all(re.fullmatch(r"[0-9]+", text) for text in texts)
    named_id = _IDS.fullmatch(name) and not _DENSE_NAME.fullmatch(name)
    if numbers and not (whole and named_id and len(texts) > 2):
        guess.dense.append(_dense(name, texts))
        return
    reason = f"{len(texts):,} texts in the sample, each its own value"
    guess.categorical.append(ColumnGuess(name, ", type: value", reason))


def _dense(name: str, texts: Counter[str]) -> ColumnGuess:
    values = sorted(float(text) for text in texts.elements())
    low, median, high = values[0], values[len(values) // 2], values[-1]
    reason = f"{low:g} to {high:g}, median {median:g}"
    if low >= 0 and high > 10 * max(median, 1):
        return ColumnGuess(name, ", transform: log1p", f"{reason}: a long tail")
    return ColumnGuess(name, ", transform: standardise, missing: mean", reason)


def _separator(texts: Counter[str]) -> str | None:
    """Returns what separates the ids of a bag in texts; None if they seem to be one value each.

    The texts of bags hold different numbers of short items, which are fewer than the texts, as they
    occur in several of them. Those of names with a comma, or of decimal commas, do not.
    """
    for separator in _SEPARATORS:
        bags = [_items(text, separator) for text in texts]
        items = {item for bag in bags for item in bag}
        sizes = {len(bag) for bag in bags}
        many = sum(count for text, count in texts.items() if separator in text)
        if (
            10 * many >= sum(texts.values())
            and len(sizes) > 1
            and len(items) < len(texts)
            and max(map(len, items), default=0) <= _LONGEST_ITEM
            and not any(map(_DECIMAL_COMMA.fullmatch, texts))
        ):
            return separator
    return None


def _items(text: str, separator: str) -> list[str]:
    return [item.strip() for item in text.split(separator) if item.strip()]


def _bag(name: str, texts: Counter[str], separator: str) -> ColumnGuess:
    bags = [_items(text, separator) for text in texts]
    most = max(1, *map(len, bags))
    distinct = len({item for bag in bags for item in bag})
    split = "" if separator == UNIT_SEPARATOR else f", separator: {json.dumps(separator)}"
    keys = f"{split}, max_ids: {most}, pooling: mean"
    reason = f"bags of up to {most} of {distinct:,} texts in the sample; of more the first are kept"
    return ColumnGuess(name, keys, reason)
