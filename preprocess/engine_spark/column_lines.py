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
from preprocess.columns import VALUE, LogColumns
from preprocess.row_expressions import Dialect, Expression
from preprocess.schema import HEX, TEXT
from preprocess.splits import SplitRule
from preprocess.text_patterns import delimiter_pattern, field_pattern, json_path, line_pattern
from preprocess.transforms import DenseStatistics

BAD_MARK = b"!"
"""What a bad line begins with: no number does."""

_OUTER_BLANKS = r"\A[ \t]+|[ \t]+\z"


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


DIALECT = SparkDialect()


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
        bare = sf.regexp_replace(text, _OUTER_BLANKS, "")
        inner = sf.substr(bare, sf.lit(2), sf.greatest(sf.length(bare) - 2, sf.lit(0)))
        inner = sf.replace(inner, sf.lit('""'), sf.lit('"'))
        text = sf.when(sf.startswith(bare, sf.lit('"')), inner).otherwise(text)
    if log.trim:
        text = sf.regexp_replace(text, _OUTER_BLANKS, "")
    if log.absent:
        text = sf.when(text.isin(list(log.absent)), "").otherwise(text)
    return text


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
        text = row_expressions.category(DIALECT, category, fields[category.column])
        if category.kind == VALUE:
            # A broadcast join leaves the rows where they are, in their order.
            known_texts = texts[table].select(
                sf.col("value").alias(f"value_{table}"), sf.col("text").alias(f"text_{table}")
            )
            on = text == sf.col(f"text_{table}")
            frame = frame.join(sf.broadcast(known_texts), on, "left")
            numbers.append(sf.coalesce(sf.col(f"value_{table}").cast("string"), sf.lit("")))
        elif category.kind == TEXT:
            numbers.append(sf.when(text == "", "").otherwise(sf.crc32(text).cast("string")))
        elif category.kind == HEX:
            numbers.append(sf.when(text == "", "").otherwise(sf.conv(text, 16, 10)))
        else:
            numbers.append(text)
    if log.split is not None:
        numbers.append(row_expressions.tag(DIALECT, split, fields[log.split]))
    row = sf.concat_ws("\t", *(number.cast("string") for number in numbers)).cast("binary")
    bad = sf.concat(sf.lit(BAD_MARK), sf.col("value"))
    return frame.select(sf.when(sf.col("good"), row).otherwise(bad).alias("value"))
