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
from typing import Any, Callable

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from preprocess.bad_rows import NAMED
from preprocess.columns import LogColumns
from preprocess.engine_spark.column_lines import BAD_MARK
from preprocess.engine_spark.java import java_classes
from preprocess.field_frame import FieldFrames
from preprocess.options import Options
from preprocess.schema import CATEGORICAL, DENSE, FLOAT, HEX, INTEGER, LABEL, SPLIT, TEXT, Schema
from preprocess.splits import NAMES

_STAGED = (
    "file int, partition int, before bigint, rows int, tags binary, data binary, summary string"
)
"""`before`: rows of the partition before the chunk; `summary`: only in the partition's last row."""

_ROLES = (LABEL, DENSE, CATEGORICAL, SPLIT)
_KINDS = (INTEGER, HEX, TEXT, FLOAT)


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
    """

    rows: list[int]
    positives: int = 0
    raised: int = 0
    missing: list[int] = field(default_factory=list)
    bad_rows: int = 0
    first_bad_rows: list[str] = field(default_factory=list)


def stage_file(
    session: SparkSession,
    source: str,
    number: int,
    target: str,
    options: Options,
    convert: Callable[[DataFrame], DataFrame] | None = None,
) -> StagedFile:
    """Parses a file and writes its good rows to `target`.

    Args:
        session: Spark.
        source: The file.
        number: The index of the file among all files.
        target: The folder to write.
        options: The options of the run.
        convert: Makes lines that `LineParser` reads of those of the file; None leaves them.

    Raises:
        ValueError: The partitions of the file are not in order, or its header is wrong.
    """
    java = java_classes(session)
    parser = java.new("LineParser", number, *_parser_arguments(options))
    lines = file_lines(session, source, options.schema)
    lines = convert(lines) if convert else lines
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
        missing=[
            sum(found["missing"][table] for found in partitions)
            for table in range(options.num_categorical)
        ],
    )
    # Spark splits a text file anywhere, so a partition can number only its own lines.
    before = 0
    describe = _fault_finder(options.schema)
    for found in partitions:
        for line, text in found["bad"]:
            fault = describe(bytes.fromhex(text))
            staged.first_bad_rows.append(f"{source}, line {before + line}: {fault}")
        before += found["lines"]
    header = _has_header(options.schema) and before > 0
    staged.first_bad_rows = staged.first_bad_rows[:NAMED]
    staged.bad_rows = before - header - sum(staged.rows)
    return staged


def _parser_arguments(options: Options) -> list[Any]:
    """Returns the arguments of `LineParser` after the number of the file."""
    schema, rules = options.schema, options.rules
    lines = []
    for position, entry in enumerate(schema.fields):
        role = _ROLES.index(entry.role) if entry.role in _ROLES else len(_ROLES)
        column = limit = 0
        if entry.role == DENSE:
            column = schema.dense.index(position)
            limit = rules.lowest(column)
        elif entry.role == CATEGORICAL:
            column = schema.categorical.index(position)
            limit = rules.modulus(column) or 0
        lines.append(f"{role} {_KINDS.index(entry.kind)} {column} {limit}")
    tags: Mapping[str, int] = {}
    if schema.columns is not None:  # the lines made of them hold the tag itself
        tags = {str(tag): tag for tag in range(1, len(NAMES))}
    elif schema.split is not None:
        tags = options.split.tags
    return [
        options.num_dense,
        options.num_categorical,
        _has_header(schema),
        NAMED,
        schema.delimiter,
        schema.format == "csv",
        rules.missing_is_value,
        "\n".join(lines),
        "\n".join(f"{tag} {text.encode().hex()}" for text, tag in tags.items()),
    ]


def _has_header(schema: Schema) -> bool:
    return (schema.columns or schema).header


def _fault_finder(schema: Schema) -> Callable[[bytes], str | None]:
    """Returns what describes the fault of a line that `LineParser` has refused."""
    if schema.columns is None:
        return schema.fault
    frames = FieldFrames(schema.columns)
    return lambda line: frames.faults([line.removeprefix(BAD_MARK)])[0]


def file_lines(session: SparkSession, source: str, full: Schema) -> DataFrame:
    """Reads the lines of a file as bytes, without LF.

    Raises:
        ValueError: The partitions of the file are not in order, or its header is wrong.
    """
    schema = full.columns or full
    if schema.format == "parquet":
        frame = session.read.parquet(source)
        absent = [name for name in schema.names if name not in frame.columns]
        if absent:
            raise ValueError(
                f"{source}: expected columns {', '.join(absent)}, found none of these names"
            )
        # Characters that would end a field or a line become spaces.
        texts = [
            sf.coalesce(
                sf.regexp_replace(sf.col(f"`{name}`").cast("string"), r"[\t\r\n]", " "),
                sf.lit(""),
            )
            for name in schema.names
        ]
        value = sf.concat_ws("\t", *texts)
    else:
        frame = session.read.option("lineSep", "\n").text(source)
        value = sf.col("value")
    lines = frame.select(value.cast("binary").alias("value"), "_metadata.file_block_start")
    _check_order(lines, source)
    lines = lines.select("value")
    if schema.header:
        _check_header(lines, source, schema)
    return lines


def _check_header(lines: DataFrame, source: str, schema: Schema | LogColumns) -> None:
    first = lines.first()
    fault = first and schema.header_fault(bytes(first["value"]).removesuffix(b"\r"))
    if fault:
        raise ValueError(f"{source}, line 1: {fault}; correct the schema's columns")


def _check_order(lines: DataFrame, source: str) -> None:
    """Checks that the partitions of a file follow each other in it, as row numbers assume.

    The offsets are taken from Spark's plan, so that no text is read.
    """
    jvm_partitions: Any = lines._jdf.queryExecution().toRdd().partitions()
    starts = []
    for partition in jvm_partitions:
        if not hasattr(partition, "files"):
            return
        for file in partition.files():
            starts.append(int(file.start()))
    if starts != sorted(starts):
        raise ValueError(
            f"{source}: expected Spark to read the file in order, found another order; set"
            " --engine=polars"
        )


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
