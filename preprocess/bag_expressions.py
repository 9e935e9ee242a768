"""The rules of bags of ids as expressions over text, written once for both engines.

A field is split into items, the texts of single ids. Empty and absent ones are dropped, with their
weights; of more than `max_ids` the first are kept. This module must not know about files or tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from preprocess.columns import NUMBER, BagRule, CategoryColumn, LogColumns
from preprocess.dialect import Check, Dialect, Expression
from preprocess.kind_checks import kind_check

_JSON_ITEM = r'(?:"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|null)'
JSON_LIST = rf"\A\[\s*(?:{_JSON_ITEM}\s*(?:,\s*{_JSON_ITEM}\s*)*)?\]\z"
"""A JSON list of texts and numbers."""


@dataclass(frozen=True)
class BagItems:
    """A bag of each row.

    Attributes:
        found: The number of ids in the field.
        ids: The list of their texts, at most `max_ids` of them.
        weights: The list of their weights as texts; None without weights.
    """

    found: Expression
    ids: Expression
    weights: Expression | None


def bag_items(
    dialect: Dialect, log: LogColumns, column: CategoryColumn, fields: dict[str, Expression]
) -> BagItems:
    """Returns the bag that a categorical column makes of each good row."""
    bag = column.bag
    assert bag
    items = _items(dialect, log, bag, fields[column.column])
    ids = dialect.filled(items, items)
    weights = None
    if bag.weights:
        filled = dialect.filled(_items(dialect, log, bag, fields[bag.weights]), items)
        weights = dialect.first(filled, bag.max_ids)
    return BagItems(dialect.count(ids), dialect.first(ids, bag.max_ids), weights)


def bag_checks(
    dialect: Dialect, log: LogColumns, column: CategoryColumn, fields: dict[str, Expression]
) -> list[Check]:
    """Returns the conditions of a good row that concern a bag."""
    bag = column.bag
    assert bag
    text, where = fields[column.column], f"column {column.column}"
    found = _form_checks(dialect, log, bag, column.column, text)
    items = _items(dialect, log, bag, text)
    if not column.any_text:

        def known(item: Expression) -> Expression:
            return kind_check(dialect, column.kind, item)[1] | (item == dialect.literal(""))

        expected, _ = kind_check(dialect, column.kind, text)
        found.append(
            Check(where, column.column, f"for each id {expected}", dialect.every(items, known))
        )
    if bag.weights:
        weight_text, where = fields[bag.weights], f"column {bag.weights}"
        found += _form_checks(dialect, log, bag, bag.weights, weight_text)
        weights = _items(dialect, log, bag, weight_text)
        expected = f"as many weights as column {column.column} has ids (correct the line)"
        same = dialect.count(weights) == dialect.count(items)
        found.append(Check(where, bag.weights, expected, same))

        def finite(weight: Expression) -> Expression:
            return kind_check(dialect, NUMBER, weight)[1]

        good = dialect.every(dialect.filled(weights, items), finite)
        expected = "for each id a finite float32 weight (correct the line)"
        found.append(Check(where, bag.weights, expected, good))
    return found


def _form_checks(
    dialect: Dialect, log: LogColumns, bag: BagRule, column: str, text: Expression
) -> list[Check]:
    """Returns the condition that a JSON value is a list, or is none where texts are split."""
    if log.format != "jsonl":
        return []
    is_list = dialect.matches(text, JSON_LIST)
    if bag.separator:
        expected = "a text to split, not a list (leave the separator out for lists)"
        return [Check(f"column {column}", column, expected, ~is_list)]
    expected = "a list of texts or numbers (give a separator to split a text)"
    good = is_list | (text == dialect.literal(""))
    return [Check(f"column {column}", column, expected, good)]


def _items(dialect: Dialect, log: LogColumns, bag: BagRule, text: Expression) -> Expression:
    """Returns the texts between separators or in a JSON list, "" where one stands for no value."""

    def cleaned(item: Expression) -> Expression:
        if log.trim:
            item = dialect.trimmed(item)
        if log.absent:
            absent = dialect.is_in(item, log.absent)
            item = dialect.where(absent, dialect.literal(""), item)
        return item

    items = dialect.split(text, bag.separator) if bag.separator else dialect.json_list(text)
    return dialect.each(items, cleaned) if log.trim or log.absent else items
