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
from preprocess.schema import CATEGORICAL, DENSE, HEX, LABEL, TEXT, Field
from preprocess.splits import TRAIN

_LOW_BITS = 33  # of monotonically_increasing_id: the row within its partition
_LONG = "bigint"


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

    Columns: partition, local, label, d0.. (raised to the lowest), c0.. (numbers after the modulus;
    null if missing and no value), and tag if a field tells the split.

    Raises:
        ValueError: if the file's partitions do not come in order.
    """
    lines = _lines(session, source, options)
    parsed = _parsed(lines, options)
    read, kept = Observation(), Observation()
    good = (
        parsed.observe(read, sf.count(sf.lit(1)).alias("lines"))
        .filter("good")
        .observe(kept, *_measures(options))
        .withColumn("partition", sf.spark_partition_id())
        .withColumn("local", _local(sf.monotonically_increasing_id()))
    )
    good.select("partition", "local", *_record(options)).write.mode("overwrite").parquet(target)
    found = kept.get
    staged = StagedFile(
        _partition_rows(session.read.parquet(target)),
        positives=int(found["positives"] or 0),
        raised=int(found["raised"] or 0),
        missing=[int(found[f"m{t}"] or 0) for t in range(options.num_categorical)],
        bad_rows=int(read.get["lines"]) - int(found["rows"]),
    )
    if staged.bad_rows:
        staged.first_bad_rows = _first_bad_rows(parsed, source, options)
    return staged


def _local(number: Column) -> Column:
    return number.bitwiseAND(sf.lit((1 << _LOW_BITS) - 1))


def _partition_rows(staged: DataFrame) -> list[int]:
    found = {
        row["partition"]: row["rows"]
        for row in staged.groupBy("partition").agg(sf.count(sf.lit(1)).alias("rows")).collect()
    }
    return [found.get(partition, 0) for partition in range(max(found, default=-1) + 1)]


def _lines(session: SparkSession, source: str, options: Options) -> DataFrame:
    """The lines of a file as `value`, without line ends or header, and where each block begins."""
    schema = options.schema
    if schema.format == "parquet":
        frame = session.read.parquet(source)
        absent = [field.name for field in schema.fields if field.name not in frame.columns]
        if absent:
            raise ValueError(f"{source}: expected columns {', '.join(absent)}, found none so called")
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


def _parsed(lines: DataFrame, options: Options) -> DataFrame:
    """Each line with its fields as numbers, and whether it is good."""
    schema = options.schema
    # Parameters of rlike and split are Java's; "\z", as "$" would let a line end pass.
    good = sf.col("value").rlike(schema.line_pattern())
    if any(field.kind == TEXT for field in schema.fields):
        good &= sf.expr("is_valid_utf8(value)")
    frame = lines.withColumn("fields", sf.split("value", re.escape(schema.delimiter), -1))
    columns: dict[str, Column] = {}
    for position, entry in enumerate(schema.fields):
        text = sf.get(sf.col("fields"), sf.lit(position))
        number = _number(entry, text)
        if number is None:
            continue
        columns[f"f{position}"] = number
        if entry.kind != TEXT and entry.kind != HEX:
            in_range = sf.col(f"f{position}").isNotNull() | (text == "")
            good &= in_range
    return frame.withColumns(columns).withColumn("good", sf.coalesce(good, sf.lit(False)))


def _number(entry: Field, text: Column) -> Column | None:
    """What a field stands for; null if empty or out of range."""
    if entry.kind == TEXT:
        return sf.when(text != "", sf.crc32(text)) if entry.role == CATEGORICAL else text
    if entry.kind == HEX:
        return sf.when(text != "", sf.conv(text, 16, 10).cast(_LONG))
    if entry.role in (LABEL, DENSE):
        return text.cast("int")
    number = text.cast(_LONG)
    return sf.when(number.between(0, 2**32 - 1), number)


def _dense(options: Options) -> list[Column]:
    return [sf.coalesce(f"f{position}", sf.lit(0)) for position in options.schema.dense]


def _measures(options: Options) -> list[Column]:
    """What is counted of the good rows on the way."""
    schema = options.schema
    lowest = [options.rules.lowest(column) for column in range(options.num_dense)]
    raised: Column = sf.lit(0)
    for value, low in zip(_dense(options), lowest, strict=True):
        raised = raised + (value < low).cast("int")
    return [
        sf.count(sf.lit(1)).alias("rows"),
        sf.sum(f"f{schema.label}").alias("positives"),
        sf.sum(raised).alias("raised"),
        *(
            sf.sum(sf.col(f"f{position}").isNull().cast("int")).alias(f"m{table}")
            for table, position in enumerate(schema.categorical)
        ),
    ]


def _record(options: Options) -> list[Column]:
    schema, rules = options.schema, options.rules
    columns = [sf.col(f"f{schema.label}").alias("label")]
    for index, value in enumerate(_dense(options)):
        columns.append(sf.greatest(value, sf.lit(rules.lowest(index))).alias(f"d{index}"))
    for table, position in enumerate(schema.categorical):
        value = sf.col(f"f{position}")
        if rules.missing_is_value:
            value = sf.coalesce(value, sf.lit(0).cast(_LONG))
        modulus = rules.modulus(table)
        columns.append((value % modulus if modulus else value).alias(f"c{table}"))
    if schema.split is not None:
        tag: Column = sf.lit(0)
        for text, number in options.split.tags.items():
            tag = sf.when(sf.col(f"f{schema.split}") == text, number).otherwise(tag)
        columns.append(tag.alias("tag"))
    return columns


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
    session: SparkSession, targets: Sequence[str], files: Sequence[StagedFile]
) -> DataFrame:
    """The staged rows of all files with their number over all of them, as `row`."""
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
        frame = frame.drop("partition", "local")
        frames = frame if frames is None else frames.unionByName(frame)
    assert frames is not None, TRAIN
    return frames
