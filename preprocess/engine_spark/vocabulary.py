"""Builds the vocabulary in Spark: each table's values, their counts, first rows and ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as sf

from dlrm.formats.zip_strict import zip_strict
from preprocess.engine_spark.java import java_classes
from preprocess.engine_spark.slots import Slots
from preprocess.options import Options

_LOW_BITS = 33  # of monotonically_increasing_id: the number of the row within its partition
_VALUES_AT_ONCE = 1_000_000  # values that a task counts, in 48 MiB, before it passes them on


@dataclass
class TableStatistics:
    """Statistics of the values of one table.

    Attributes:
        distinct: Number of distinct values.
        unknown: Number of rows, or ids of bags, whose value does not have its own id.
        kept: Number of values that get a new id.
    """

    distinct: int = 0
    unknown: int = 0
    kept: int = 0


def stage_value_counts(chunks: DataFrame, offsets: str, target: str, options: Options) -> None:
    """Writes (feature, value, count, first) of all tables as Parquet to `target`.

    Args:
        chunks: The staged rows.
        offsets: The result of `row_offsets`.
        target: The folder to write.
        options: The options of the run.
    """
    java = java_classes(chunks.sparkSession)
    slots = Slots(options)
    tables = " ".join(map(str, options.dictionary_tables))
    counter = java.new("ValueCounter", slots.floats, slots.text, offsets, _VALUES_AT_ONCE, tables)
    (
        java.rows(chunks, counter, "feature int, value bigint, count bigint, first bigint")
        .groupBy("feature", "value")
        .agg(sf.sum("count").alias("count"), sf.min("first").alias("first"))
        .write.mode("overwrite")
        .parquet(target)
    )


def stage_new_ids(
    session: SparkSession, value_counts: str, ranked: str, old: DataFrame | None, options: Options
) -> list[int]:
    """Sorts the values that get their own id, in the order that the rules define.

    They are sorted over all workers, staged with their position in the sorted partitions, and
    counted. No worker ever holds a complete table.

    Args:
        session: Spark.
        value_counts: The folder that `stage_value_counts` wrote.
        ranked: The folder to write (feature, value, count, partition, local) to.
        old: The dictionary of an earlier result, whose values have their ids; None without one.
        options: The options of the run.

    Returns:
        For each partition, the number of sorted values before it.
    """
    kept = session.read.parquet(value_counts).filter(sf.col("count") >= _thresholds(options))
    if old is not None:
        kept = kept.join(old, ["feature", "value"], "left_anti")
    keys = (sf.desc("count"), sf.asc("value")) if options.rules.by_count else (sf.asc("first"),)
    number = sf.monotonically_increasing_id()
    (
        kept.sort("feature", *keys)
        .select("feature", "value", "count", number.alias("number"))
        .withColumn("partition", sf.shiftright("number", _LOW_BITS).cast("int"))
        .withColumn("local", sf.col("number").bitwiseAND(sf.lit((1 << _LOW_BITS) - 1)))
        .drop("number")
        .write.mode("overwrite")
        .parquet(ranked)
    )
    counts = {
        row["partition"]: row["count"]
        for row in session.read.parquet(ranked).groupBy("partition").count().collect()
    }
    before, offsets = 0, []
    for partition in range(max(counts, default=-1) + 1):
        offsets.append(before)
        before += counts.get(partition, 0)
    return offsets


def new_ids(
    session: SparkSession,
    ranked: str,
    offsets: Sequence[int],
    statistics: Sequence[TableStatistics],
    vocab_sizes: Sequence[int],
) -> DataFrame:
    """Returns the dictionary (feature, value, id, count) of the values that were staged.

    They have the last ids of their tables.

    Args:
        session: Spark.
        ranked: The folder that `stage_new_ids` wrote.
        offsets: The result of `stage_new_ids`.
        statistics: The statistics of each table.
        vocab_sizes: The number of rows of each table.
    """
    frame = session.read.parquet(ranked)
    before, starts = 0, []
    for known, size in zip_strict(statistics, vocab_sizes):
        starts.append(size - known.kept - before)
        before += known.kept
    position = sf.get(_longs(offsets or [0]), sf.col("partition")) + sf.col("local")
    number = (position + sf.get(_longs(starts), sf.col("feature"))).cast("int")
    return frame.select("feature", "value", number.alias("id"), "count")


def old_ids(session: SparkSession, options: Options) -> DataFrame:
    """Returns the dictionary (feature, value, id, count) of the earlier result in the options."""
    tables = options.dictionary_tables
    if not tables:
        return session.createDataFrame([], "feature int, value bigint, id int, count bigint")
    paths = [f"{options.dictionary}/dictionary/table_{table}.parquet" for table in tables]
    frame = session.read.parquet(*paths)
    return frame.select("feature", sf.col("value").cast("bigint"), "id", "count")


def grown_ids(old: DataFrame, value_counts: str, fresh: DataFrame) -> DataFrame:
    """Returns an earlier dictionary with summed counts, and the new values behind it.

    Args:
        old: The earlier dictionary (feature, value, id, count).
        value_counts: The folder that `stage_value_counts` wrote.
        fresh: The dictionary of the new values.
    """
    more = old.sparkSession.read.parquet(value_counts).select(
        "feature", "value", sf.col("count").alias("more")
    )
    counts = sf.col("count") + sf.coalesce("more", sf.lit(0))
    known = old.join(more, ["feature", "value"], "left").withColumn("count", counts)
    return known.select("feature", "value", "id", "count").union(
        fresh.select("feature", "value", "id", "count")
    )


def first_ids(dictionary: DataFrame) -> dict[int, int]:
    """Returns the first id of each table of a dictionary that has values."""
    return dict(dictionary.groupBy("feature").agg(sf.min("id")).collect())


def table_statistics(
    session: SparkSession, value_counts: str, old: DataFrame | None, options: Options
) -> list[TableStatistics]:
    """Returns the statistics of each table.

    Args:
        session: Spark.
        value_counts: The folder that `stage_value_counts` wrote.
        old: The dictionary of an earlier result if its ids are used, otherwise None.
        options: The options of the run.
    """
    frame = session.read.parquet(value_counts)
    known = kept = sf.col("count") >= _thresholds(options)
    if old is not None:
        frame = frame.join(old.select("feature", "value", "id"), ["feature", "value"], "left")
        known, lacks = sf.col("id").isNotNull(), sf.col("id").isNull()
        kept = lacks & kept if options.append_day else sf.lit(False)
        known = known | kept
    found = [TableStatistics() for _ in range(options.num_categorical)]
    rows: list[Any] = (
        frame.groupBy("feature")
        .agg(
            sf.count(sf.lit(1)).alias("distinct"),
            sf.sum(sf.when(known, 0).otherwise(sf.col("count"))).alias("unknown"),
            sf.count_if(kept).alias("kept"),
        )
        .collect()
    )
    for row in rows:
        found[row["feature"]] = TableStatistics(row["distinct"], row["unknown"], row["kept"])
    return found


def _thresholds(options: Options) -> Column:
    tables = range(options.num_categorical)
    return sf.get(_longs([options.rules.threshold(table) for table in tables]), sf.col("feature"))


def _longs(numbers: Sequence[int]) -> Column:
    return sf.array(*(sf.lit(number).cast("bigint") for number in numbers))
