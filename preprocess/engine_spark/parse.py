"""Parses text in Spark: Java's `LineParser` turns the lines of a file into staged rows.

The good rows of a file are staged as Parquet, in chunks of bytes that Java's `Layout` describes.
Each chunk has its position: the partition of the file and the number of rows before it in that
partition. Each file is read separately, so that its partitions follow each other in the file; this
order is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Callable, NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from dlrm.formats.bags import BagTable
from preprocess.bad_rows import NAMED, BadRows
from preprocess.columns import VALUE
from preprocess.engine_spark.column_lines import BAD_MARK
from preprocess.engine_spark.java import java_classes
from preprocess.engine_spark.log_lines import file_lines
from preprocess.engine_spark.slots import Slots
from preprocess.field_frame import FieldFrames
from preprocess.log_statistics import LogStatistics
from preprocess.options import Options
from preprocess.schema import CATEGORICAL, DENSE, FLOAT, HEX, INTEGER, LABEL, SPLIT, TEXT, Schema
from preprocess.splits import NAMES

_STAGED = (
    "file int, partition int, before bigint, rows int, tags binary, data binary, summary string"
)
"""`before`: rows of the partition before the chunk; `summary`: only in the partition's last row."""

_ROLES = (LABEL, DENSE, CATEGORICAL, SPLIT, "shortened", "ignored")
KNOWN = "known"
"""The kind of a text, in hexadecimal digits, whose number a table of texts has."""

_KINDS = (INTEGER, HEX, TEXT, FLOAT, KNOWN)


@dataclass
class StagedFile:
    """The staged rows of one file.

    Attributes:
        rows: Number of good rows of each partition.
        positives: Number of rows with label 1.
        raised: Number of dense values that were raised to the lowest one allowed.
        missing: Number of rows without a value, by table.
        bad_rows: Number of bad rows, which are skipped.
        first_bad_rows: Descriptions of the first ten bad rows.
        shortened: Number of bags that had more than `max_ids` ids, by table.
    """

    rows: list[int]
    positives: int = 0
    raised: int = 0
    missing: list[int] = field(default_factory=list)
    bad_rows: int = 0
    first_bad_rows: list[str] = field(default_factory=list)
    shortened: list[int] = field(default_factory=list)


class LineConversion(NamedTuple):
    """How lines that `LineParser` reads are made of those of a log.

    Attributes:
        convert: Makes them, in the same order.
        texts: The result of `known_texts`.
    """

    convert: Callable[[DataFrame], DataFrame]
    texts: Any


def stage_file(
    session: SparkSession,
    source: str,
    number: int,
    target: str,
    options: Options,
    conversion: LineConversion | None = None,
) -> StagedFile:
    """Parses a file and writes its good rows to `target`.

    Args:
        session: Spark.
        source: The file.
        number: The index of the file among all files.
        target: The folder to write.
        options: The options of the run.
        conversion: Makes lines that `LineParser` reads of those of the file; None leaves them.

    Raises:
        ValueError: The partitions of the file are not in order, or its header is wrong.
    """
    java = java_classes(session)
    texts = conversion.texts if conversion else None
    parser = java.new("LineParser", number, *_parser_arguments(options, texts))
    lines = file_lines(session, source, options.schema)
    lines = conversion.convert(lines) if conversion else lines
    java.rows(lines, parser, _STAGED).write.mode("overwrite").parquet(target)
    summaries = (
        session.read.schema(_STAGED)
        .parquet(target)
        .filter("summary is not null")
        .sort("partition")
        .select("summary")
        .collect()
    )
    return _measured(source, [json.loads(row["summary"]) for row in summaries], options)


def _measured(source: str, partitions: list[dict[str, Any]], options: Options) -> StagedFile:
    """Sums up the counts of a file's partitions, and describes its first bad rows.

    Args:
        source: The file, for error messages.
        partitions: The summaries of its partitions, in order.
        options: The options of the run.
    """
    staged = StagedFile(
        [found["rows"] for found in partitions],
        positives=sum(found["positives"] for found in partitions),
        raised=sum(found["raised"] for found in partitions),
        missing=_sums([found["missing"] for found in partitions], options),
        shortened=_sums([found["shortened"] for found in partitions], options),
    )
    # Spark splits a text file anywhere, so a partition can number only its own lines.
    before, total = 0, _lines(partitions, options)
    describe = _fault_finder(options.schema)
    for found in partitions:
        for line, text in found["bad"]:
            if before + line > total:
                break
            fault = describe(bytes.fromhex(text))
            staged.first_bad_rows.append(f"{source}, line {before + line}: {fault}")
        before += found["lines"]
    header = _has_header(options.schema) and before > 0
    staged.first_bad_rows = staged.first_bad_rows[:NAMED]
    staged.bad_rows = total - header - sum(staged.rows)
    return staged


def _lines(partitions: list[dict[str, Any]], options: Options) -> int:
    """Returns the number of lines of a file; empty ones at its end are none of a log's columns."""
    total = sum(found["lines"] for found in partitions)
    for found in reversed(partitions if options.schema.columns is not None else []):
        total -= found["empty_end"]
        if found["empty_end"] < found["lines"]:
            break
    return total


def _sums(counts: Sequence[Sequence[int]], options: Options) -> list[int]:
    """Returns the sum of the counts of all partitions, by table."""
    return [sum(found[table] for found in counts) for table in range(options.num_categorical)]


def log_statistics(files: Sequence[StagedFile], options: Options) -> LogStatistics:
    """Returns what the staged files of a run say of its logs.

    Raises:
        ValueError: There are too many bad rows; the message names file and line of the first.
    """
    bad = BadRows(options.max_bad_rows)
    for file in files:
        bad.add(file.bad_rows, file.first_bad_rows)
    return LogStatistics(
        [sum(file.rows) for file in files],
        positives=sum(file.positives for file in files),
        raised_dense=sum(file.raised for file in files),
        missing=[sum(counts) for counts in zip(*(file.missing for file in files))],
        shortened_bags=[sum(file.shortened[bag.table] for file in files) for bag in options.bags],
        bad_rows=bad.count,
        first_bad_rows=bad.first,
    )


def _parser_arguments(options: Options, texts: Any) -> list[Any]:
    """Returns the arguments of `LineParser` after the number of the file."""
    schema, rules, slots = options.schema, options.rules, Slots(options)
    bags = {bag.table: bag for bag in options.bags}
    lines = []
    for position, entry in enumerate(schema.fields):
        role = _ROLES.index(entry.role)
        column = limit = 0
        if entry.role == DENSE:
            column = schema.dense.index(position)
            limit = rules.lowest(column)
        elif entry.role == CATEGORICAL:
            column = schema.categorical.index(position)
            limit = rules.modulus(column) or 0
            if column in bags:
                lines += _bag_fields(options, slots, bags[column], limit)
                continue
        lines.append(f"{role} {_KINDS.index(entry.kind)} {column} {limit}")
    tags: Mapping[str, int] = {}
    if schema.columns is not None:  # the lines made of them hold the tag itself
        tags = {str(tag): tag for tag in range(1, len(NAMES))}
    elif schema.split is not None:
        tags = options.split.tags
    return [
        slots.floats,
        slots.text,
        _has_header(schema),
        NAMED,
        texts,
        schema.delimiter,
        schema.format == "csv",
        rules.missing_is_value,
        "\n".join(lines),
        "\n".join(f"{tag} {text.encode().hex()}" for text, tag in tags.items()),
    ]


def _bag_fields(options: Options, slots: Slots, bag: BagTable, modulus: int) -> list[str]:
    """Returns what `Fields` reads of the fields that `column_lines` makes of a bag."""
    log = options.schema.columns
    assert log
    kind = KNOWN if log.categories[bag.table].kind == VALUE else INTEGER
    category, dense, shortened = map(_ROLES.index, (CATEGORICAL, DENSE, "shortened"))
    first, weight = slots.first_slot(bag.table), slots.weights(bag) - 1
    fields = [f"{category} {_KINDS.index(kind)} {first + i} {modulus}" for i in range(bag.max_ids)]
    if bag.weights:
        floats = range(weight, weight + bag.max_ids)
        fields += [f"{dense} {_KINDS.index(FLOAT)} {column} 0" for column in floats]
    return [*fields, f"{shortened} 0 {bag.table} 0"]


def known_texts(session: SparkSession, texts: Mapping[int, DataFrame], options: Options) -> Any:
    """Broadcasts the numbers of the texts that bags hold; returns None if there are none.

    Args:
        session: Spark.
        texts: For each table whose values are texts, (value, text).
        options: The options of the run.
    """
    frames = [
        texts[bag.table].select(sf.lit(bag.table), sf.hex("text"), sf.col("value").cast("bigint"))
        for bag in options.bags
        if bag.table in texts
    ]
    if not frames:
        return None
    rows = reduce(DataFrame.union, frames)._jdf.collectAsList()
    numbers = java_classes(session).new("KnownTexts").numbers(rows)
    return session.sparkContext._jsc.broadcast(numbers)


def _has_header(schema: Schema) -> bool:
    return (schema.columns or schema).header


def _fault_finder(schema: Schema) -> Callable[[bytes], str | None]:
    """Returns what describes the fault of a line that `LineParser` has refused."""
    if schema.columns is None:
        return schema.fault
    frames = FieldFrames(schema.columns)
    return lambda line: frames.faults([line.removeprefix(BAD_MARK)])[0]


def staged_rows(session: SparkSession, targets: Sequence[str]) -> DataFrame:
    """Returns the chunks of all files, in any order."""
    return session.read.schema(_STAGED).parquet(*targets).filter("rows > 0")


def row_offsets(files: Sequence[StagedFile]) -> str:
    """Returns a line for each file: the number of rows, in all files, before each partition."""
    before, lines = 0, []
    for staged in files:
        offsets = []
        for rows in staged.rows:
            offsets.append(str(before))
            before += rows
        lines.append(" ".join(offsets))
    return "\n".join(lines)
