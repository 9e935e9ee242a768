"""Text to numbers in Spark, by the pattern and the ranges that every engine holds a row to.

The good rows of a file are staged as Parquet with their place: the partition of the file they came
in and their number within it. A file is read alone, so that its partitions are its stretches in
order; the order is checked all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as sf

from preprocess.bad_rows import NAMED
from preprocess.options import Options
from preprocess.schema import DENSE, HEX, LABEL, TEXT

_LOW_BITS = 33  # of monotonically_increasing_id: the row within its partition
_LONG = "bigint"
_MAX_UINT32 = 2**32 - 1


@dataclass
class StagedFile:
    """One file's staged rows.

    Attributes:
        rows: good rows of each partition.
        positives: rows with label 1.
        raised: dense values that were below the lowest one.
        missing: for each table, rows without a value.
        bad_rows: rows left out.
        first_bad_rows: the first ten of them, in words.
    """

    rows: list[int]
    positives: int = 0
    raised: int = 0
    missing: list[int] = field(default_factory=list)
    bad_rows: int = 0
    first_bad_rows: list[str] = field(default_factory=list)


def stage_file(session: SparkSession, source: str, target: str, options: Options) -> StagedFile:
    """Parses a file and writes its good rows as Parquet to `target`.

    Columns: partition, local, label, d0.. and c0.. (numbers as they stand in the log, null if
    missing), and tag if a field tells the split.

    Raises:
        ValueError: if the file's partitions do not come in order.
    """
    lines = _lines(session, source, options)
    read = Observation()
    # Counting stands between the fields and their use, lest Spark split a line for each field.
    fields = _fields(lines, options).observe(read, sf.count(sf.lit(1)).alias("lines"))
    (
        _parsed(fields, options)
        .filter("good")
        .drop("good", "value")
        .withColumn("partition", sf.spark_partition_id())
        .withColumn("local", _local(sf.monotonically_increasing_id()))
        .write.mode("overwrite")
        .parquet(target)
    )
    staged = _measured(session.read.parquet(target), options)
    staged.bad_rows = int(read.get["lines"]) - sum(staged.rows)
    if staged.bad_rows:
        parsed = _parsed(_fields(lines, options), options)
        staged.first_bad_rows = _first_bad_rows(parsed, source, options)
    return staged


def _measured(staged: DataFrame, options: Options) -> StagedFile:
    """What is counted of a file's good rows."""
    raised: Column = sf.lit(0)
    for column in range(options.num_dense):
        lowest = options.rules.lowest(column)
        raised = raised + (sf.coalesce(f"d{column}", sf.lit(0)) < lowest).cast("int")
    rows = sf.count(sf.lit(1))
    tables = range(options.num_categorical)
    found = {
        row["partition"]: row
        for row in staged.groupBy("partition")
        .agg(
            rows.alias("rows"),
            sf.sum("label").alias("positives"),
            sf.sum(raised).alias("raised"),
            *((rows - sf.count(f"c{table}")).alias(f"m{table}") for table in tables),
        )
        .collect()
    }
    return StagedFile(
        [
            found[partition]["rows"] if partition in found else 0
            for partition in range(max(found, default=-1) + 1)
        ],
        positives=sum(row["positives"] for row in found.values()),
        raised=sum(row["raised"] for row in found.values()),
        missing=[sum(row[f"m{table}"] for row in found.values()) for table in tables],
    )


def _local(number: Column) -> Column:
    return number.bitwiseAND(sf.lit((1 << _LOW_BITS) - 1))


def _lines(session: SparkSession, source: str, options: Options) -> DataFrame:
    """The lines of a file as `value`, without line ends or header, and where each block begins."""
    schema = options.schema
    if schema.format == "parquet":
        frame = session.read.parquet(source)
        absent = [field.name for field in schema.fields if field.name not in frame.columns]
        if absent:
            raise ValueError(
                f"{source}: expected columns {', '.join(absent)}, found none so called"
            )
        # What would end a field or a line becomes a space.
        texts = [
            sf.coalesce(
                sf.regexp_replace(sf.col(f"`{field.name}`").cast("string"), r"[\t\r\n]", " "),
                sf.lit(""),
            )
            for field in schema.fields
        ]
        value = sf.concat_ws("\t", *texts)
        lines = frame.select(value.alias("value"), "_metadata.file_block_start")
        _check_order(lines, source)
        return lines.select("value")
    frame = session.read.option("lineSep", "\n").text(source)
    _check_order(frame.select("value", "_metadata.file_block_start"), source)
    value = sf.expr(r"if(endswith(value, '\r'), left(value, length(value) - 1), value)")
    frame = frame.select(value.alias("value"))
    if not schema.header:
        return frame
    numbered = frame.withColumn("number", sf.monotonically_increasing_id())
    first = numbered.filter("number = 0").first()
    expected = schema.delimiter.join(field.name for field in schema.fields)
    if first is not None and first["value"] != expected:
        raise ValueError(
            f"{source}, line 1: expected the header {expected!r}, found {first['value'][:200]!r};"
            " correct the schema's columns"
        )
    # The header keeps its number, so that lines count as in the file.
    return numbered.filter("number > 0").select("value")


def _check_order(lines: DataFrame, source: str) -> None:
    """Holds Spark to what row numbers rest on: a file's partitions are its stretches in order.

    A pass over the splits' first lines alone would need the text; Spark's plan has the splits.
    """
    jvm_partitions: Any = lines._jdf.queryExecution().toRdd().partitions()
    starts = []
    for partition in jvm_partitions:
        if not hasattr(partition, "files"):
            return
        for file in partition.files():
            starts.append(int(file.start()))
    if starts != sorted(starts):
        raise ValueError(f"{source}: expected Spark to read it in order; set --engine=polars")


def _fields(lines: DataFrame, options: Options) -> DataFrame:
    """Each line with its fields as text, and whether it has the pattern of a good one."""
    schema = options.schema
    matches = sf.col("value").rlike(schema.line_pattern())
    if any(field.kind == TEXT for field in schema.fields):
        matches &= sf.expr("is_valid_utf8(value)")
    return lines.select(
        "value",
        sf.split("value", re.escape(schema.delimiter), -1).alias("fields"),
        matches.alias("matches"),
    )


def _parsed(frame: DataFrame, options: Options) -> DataFrame:
    """Each line with its fields as numbers, and whether it is good."""
    schema = options.schema
    good = sf.col("matches")

    def text(position: int) -> Column:
        return sf.get(sf.col("fields"), sf.lit(position))

    def number(position: int) -> Column:
        """What a field stands for; null if empty, and the row is bad if out of range."""
        nonlocal good
        entry, field_text = schema.fields[position], text(position)
        if entry.kind == TEXT:
            return sf.when(field_text != "", sf.crc32(field_text))
        if entry.kind == HEX:
            return sf.when(field_text != "", sf.conv(field_text, 16, 10).cast(_LONG))
        value = field_text.cast("int" if entry.role in (LABEL, DENSE) else _LONG)
        inside = (
            value.isNotNull() if entry.role in (LABEL, DENSE) else value.between(0, _MAX_UINT32)
        )
        good &= (field_text == "") | sf.coalesce(inside, sf.lit(False))
        return value

    columns = {"label": number(schema.label)}
    columns |= {f"d{i}": number(position) for i, position in enumerate(schema.dense)}
    columns |= {f"c{i}": number(position) for i, position in enumerate(schema.categorical)}
    if schema.split is not None:
        tag: Column = sf.lit(0)
        for name, index in options.split.tags.items():
            tag = sf.when(text(schema.split) == name, index).otherwise(tag)
        columns["tag"] = tag
    named = [column.alias(name) for name, column in columns.items()]
    return frame.select("value", *named, sf.coalesce(good, sf.lit(False)).alias("good"))


def _first_bad_rows(parsed: DataFrame, source: str, options: Options) -> list[str]:
    """The first bad rows in words; their text alone comes to the driver."""
    numbered = parsed.withColumn("number", sf.monotonically_increasing_id())
    raw = sf.col("value").cast("binary").alias("raw")
    bad = numbered.filter("not good").orderBy("number").select("number", raw).limit(NAMED)
    rows = bad.collect()
    counts = {
        row["partition"]: row["count"]
        for row in parsed.groupBy(sf.spark_partition_id().alias("partition")).count().collect()
    }
    named = []
    for row in rows:
        partition, local = row["number"] >> _LOW_BITS, row["number"] & ((1 << _LOW_BITS) - 1)
        before = sum(count for other, count in counts.items() if other < partition)
        line = before + local + 1 + options.schema.header
        named.append(f"{source}, line {line}: {options.schema.fault(bytes(row['raw']))}")
    return named


def all_rows(
    session: SparkSession,
    targets: Sequence[str],
    files: Sequence[StagedFile],
    options: Options,
) -> DataFrame:
    """The staged rows of all files, as the rules have their values, numbered over all as `row`."""
    frames: DataFrame | None = None
    before = 0
    for target, staged in zip(targets, files, strict=True):
        offsets = []
        for rows in staged.rows:
            offsets.append(before)
            before += rows
        if not offsets:
            continue
        offset = sf.get(sf.array(*(sf.lit(n).cast(_LONG) for n in offsets)), sf.col("partition"))
        frame = session.read.parquet(target).withColumn("row", offset + sf.col("local"))
        frame = frame.select("row", *_record(options))
        frames = frame if frames is None else frames.unionByName(frame)
    assert frames is not None
    return frames


def _record(options: Options) -> list[Column]:
    rules = options.rules
    columns = [sf.col("label")]
    for column in range(options.num_dense):
        value = sf.coalesce(f"d{column}", sf.lit(0))
        columns.append(sf.greatest(value, sf.lit(rules.lowest(column))).alias(f"d{column}"))
    for table in range(options.num_categorical):
        value = sf.col(f"c{table}")
        if rules.missing_is_value:
            value = sf.coalesce(value, sf.lit(0).cast(_LONG))
        modulus = rules.modulus(table)
        columns.append((value % modulus if modulus else value).alias(f"c{table}"))
    return [*columns, sf.col("tag")] if options.schema.split is not None else columns
