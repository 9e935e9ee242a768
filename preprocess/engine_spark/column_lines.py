"""Makes the lines that Java's `LineParser` reads of logs with columns of any kind.

A good row becomes tab-separated numbers: label, float32 values, the number of each category and the
index of its split. A bad row becomes a mark and its own bytes. The expressions are those that both
engines share; no row passes through Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as sf

from preprocess import row_expressions
from preprocess.bag_expressions import bag_items
from preprocess.columns import HASH, VALUE, CategoryColumn, LogColumns
from preprocess.engine_spark.spark_dialect import DIALECT, OUTER_BLANKS
from preprocess.schema import HEX, TEXT
from preprocess.splits import SplitRule
from preprocess.text_patterns import delimiter_pattern, field_pattern, json_path, line_pattern
from preprocess.transforms import DenseStatistics

BAD_MARK = b"!"
"""What a bad line begins with: no number does."""


def field_columns(log: LogColumns) -> dict[str, str]:
    """Returns the name of each column in the frames of `with_fields`, by its name in the log."""
    return {name: f"field_{i}" for i, name in enumerate(log.names)}


def with_fields(lines: DataFrame, log: LogColumns) -> DataFrame:
    """Adds the fields of lines as texts, and `good`: whether the line is a good row.

    Args:
        lines: The lines as bytes, `value`, without LF.
        log: The columns.
    """
    text = sf.col("value").cast("string")
    # Checked first, because regular expressions replace what is not UTF-8.
    valid = sf.is_valid_utf8(text)
    frame = lines.withColumn("line", sf.when(valid, sf.regexp_replace(text, r"\r\z", "")))
    line, names = sf.col("line"), field_columns(log)
    if log.format == "jsonl":
        whole = sf.json_object_keys(line).isNotNull() & line.rlike(r"\A\s*\{")
        pieces = {
            field: sf.when(
                whole, sf.coalesce(sf.get_json_object(line, json_path(name)), sf.lit(""))
            )
            for name, field in names.items()
        }
    else:
        frame = frame.withColumn("pieces", _pieces(log, line))
        whole = sf.size("pieces") == len(log.names)
        pieces = {
            field: sf.when(whole, sf.get(sf.col("pieces"), sf.lit(i)))
            for i, field in enumerate(names.values())
        }
    frame = frame.withColumns(pieces)
    cut = sf.lit(True)
    for field in names.values():
        cut = cut & sf.col(field).isNotNull()
    frame = frame.withColumn("cut", cut)
    frame = frame.withColumns({field: _cleaned(log, sf.col(field)) for field in names.values()})
    good = sf.col("cut")
    for check in row_expressions.checks(DIALECT, log, columns_of(log)):
        good = good & sf.coalesce(check.good, sf.lit(False))
    return frame.withColumn("good", good)


def columns_of(log: LogColumns) -> dict[str, Column]:
    """Returns the text of each column, by its name in the log."""
    return {name: sf.col(field) for name, field in field_columns(log).items()}


def _pieces(log: LogColumns, line: Column) -> Column:
    """Returns the list of fields of a line, with their quotes; null if these are wrong."""
    plain = sf.split(line, delimiter_pattern(log.delimiter), -1)
    if not log.quoted:
        return plain
    found = sf.regexp_extract_all(
        sf.concat(sf.lit(log.delimiter), line), sf.lit(field_pattern(log.delimiter)), sf.lit(0)
    )
    fields = sf.transform(found, lambda piece: sf.substr(piece, sf.lit(2)))
    good = line.rlike(line_pattern(log.delimiter, None))
    return sf.when(~sf.contains(line, sf.lit('"')), plain).when(good, fields)


def _cleaned(log: LogColumns, text: Column) -> Column:
    """Returns a field without quotes and blanks, and "" where it stands for no value."""
    if log.quoted:
        bare = sf.regexp_replace(text, OUTER_BLANKS, "")
        inner = sf.substr(bare, sf.lit(2), sf.greatest(sf.length(bare) - 2, sf.lit(0)))
        inner = sf.replace(inner, sf.lit('""'), sf.lit('"'))
        text = sf.when(sf.startswith(bare, sf.lit('"')), inner).otherwise(text)
    if log.trim:
        text = DIALECT.trimmed(text)
    if log.absent:
        text = sf.when(text.isin(list(log.absent)), "").otherwise(text)
    return text


def _bag_fields(
    log: LogColumns, category: CategoryColumn, fields: Mapping[str, Column]
) -> list[Column]:
    """Returns the fields of a bag: those of its slots, and whether it had more ids than these."""
    assert category.bag
    items, most = bag_items(DIALECT, log, category, dict(fields)), category.bag.max_ids

    def number(text: Column) -> Column:
        if category.kind == VALUE:
            return sf.hex(text)
        if category.kind in (TEXT, HASH):
            return _hash(category, text)
        return sf.conv(text, 16, 10) if category.kind == HEX else text

    found = [_slots(sf.transform(items.ids, number), most)]
    if items.weights is not None:
        floats = sf.transform(
            items.weights, lambda text: DIALECT.number(text).cast("float").cast("string")
        )
        found.append(_slots(floats, most))
    return [*found, sf.when(items.found > most, "1").otherwise("0")]


def _hash(category: CategoryColumn, text: Column) -> Column:
    """Returns the CRC-32 of a text as text, or XXH64 modulo a number."""
    if category.kind == TEXT:
        return sf.crc32(text).cast("string")
    number = sf.xxhash64(text)
    # Java's numbers have a sign, so the last bit of an unsigned one goes separately.
    high = sf.shiftrightunsigned(number, 1) % category.modulo
    last = number.bitwiseAND(sf.lit(1))
    return ((high * 2 + last) % category.modulo).cast("string")


def _slots(texts: Column, most: int) -> Column:
    """Returns so many fields as one text, of which a list fills the first."""
    empty = most - sf.greatest(sf.size(texts), sf.lit(1))
    return sf.concat(sf.array_join(texts, "\t"), sf.repeat(sf.lit("\t"), empty))


def column_lines(
    lines: DataFrame,
    log: LogColumns,
    split: SplitRule,
    dense: Sequence[DenseStatistics],
    texts: Mapping[int, DataFrame],
) -> DataFrame:
    """Returns what `LineParser` reads of each line, `value`, in the same order.

    Args:
        lines: The lines as bytes, `value`, without LF.
        log: The columns.
        split: How rows are divided.
        dense: The statistics of each dense column.
        texts: For each table whose values are texts, (value, text); every worker holds them.
    """
    frame, fields = with_fields(lines, log), columns_of(log)
    numbers: list[Column] = [row_expressions.label(DIALECT, log.label, fields[log.label.column])]
    for column, known in zip(log.dense, dense):
        value = row_expressions.dense(DIALECT, column, fields[column.column], known)
        numbers.append(value.cast("float"))
    for table, category in enumerate(log.categories):
        if category.bag:
            numbers += _bag_fields(log, category, fields)
            continue
        text = row_expressions.category(DIALECT, category, fields[category.column])
        if category.kind == VALUE:
            # A broadcast join leaves the rows where they are, in their order.
            known_texts = texts[table].select(
                sf.col("value").alias(f"value_{table}"), sf.col("text").alias(f"text_{table}")
            )
            on = text == sf.col(f"text_{table}")
            frame = frame.join(sf.broadcast(known_texts), on, "left")
            numbers.append(sf.coalesce(sf.col(f"value_{table}").cast("string"), sf.lit("")))
        elif category.kind in (TEXT, HASH):
            numbers.append(sf.when(text == "", "").otherwise(_hash(category, text)))
        elif category.kind == HEX:
            numbers.append(sf.when(text == "", "").otherwise(sf.conv(text, 16, 10)))
        else:
            numbers.append(text)
    if log.split is not None:
        numbers.append(row_expressions.tag(DIALECT, split, fields[log.split]))
    row = sf.concat_ws("\t", *(number.cast("string") for number in numbers)).cast("binary")
    bad = sf.concat(sf.lit(BAD_MARK), sf.col("value"))
    return frame.select(sf.when(sf.col("good"), row).otherwise(bad).alias("value"))
