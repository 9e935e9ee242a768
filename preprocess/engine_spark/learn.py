"""The pass that learns texts and statistics of columns in Spark, before pass one.

Texts are numbered by Spark and stay there. A sample of the dense values, of bounded size, comes to
the driver, which computes the same statistics as the engine for one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as sf

from preprocess import row_expressions
from preprocess.bag_expressions import bag_items
from preprocess.columns import LogColumns
from preprocess.engine_spark.column_lines import columns_of, with_fields
from preprocess.engine_spark.spark_dialect import DIALECT
from preprocess.options import Options
from preprocess.splits import NAMES, TRAIN
from preprocess.transforms import DenseStatistics, learn, sample_stride

_LOW_BITS = 33  # of monotonically_increasing_id: the number of the row within its partition


def stage_texts(
    session: SparkSession, files: Sequence[DataFrame], target: str, options: Options
) -> None:
    """Numbers the texts of all tables and writes (feature, value, text) as Parquet.

    Args:
        session: Spark.
        files: The lines of each file.
        target: The folder to write.
        options: The options of the run.

    Raises:
        ValueError: The dictionary that is used again has no texts.
    """
    log = options.schema.columns
    assert log
    old = [_old_texts(session, options.dictionary, table) for table in log.text_tables]
    known = reduce(DataFrame.union, old)
    fields = columns_of(log)
    found = []
    for number, lines in enumerate(files):
        row = _good_rows(lines, log).withColumn("at", sf.monotonically_increasing_id())
        pairs = sf.flatten(sf.array(*(_pairs(log, table, fields) for table in log.text_tables)))
        found.append(
            row.select("at", sf.posexplode(pairs).alias("place", "pair"))
            .select("pair.*", sf.struct(sf.lit(number).alias("file"), "at", "place").alias("at"))
            .filter("text != ''")
        )
    first = reduce(DataFrame.union, found).groupBy("feature", "text").agg(sf.min("at").alias("at"))
    fresh = first.join(known, ["feature", "text"], "left_anti")
    following = known.groupBy("feature").agg((sf.max("value") + 1).alias("following"))
    rank = sf.row_number().over(Window.partitionBy("feature").orderBy("at")) - 1
    numbered = fresh.withColumn("rank", rank).join(following, "feature", "left").select(
        "feature",
        (sf.coalesce("following", sf.lit(0)) + sf.col("rank")).cast("bigint").alias("value"),
        "text",
    )  # fmt: skip
    known.select("feature", "value", "text").union(numbered).write.mode("overwrite").parquet(target)


def _pairs(log: LogColumns, table: int, fields: dict[str, Column]) -> Column:
    """Returns the list of (feature, text) that a row has of a table."""
    column = log.categories[table]
    texts = sf.array(fields[column.column])
    if column.bag:
        texts = bag_items(DIALECT, log, column, fields).ids
    return sf.transform(
        texts, lambda text: sf.struct(sf.lit(table).alias("feature"), text.alias("text"))
    )


def learn_dense(
    files: Sequence[DataFrame], names: Sequence[str], options: Options
) -> list[DenseStatistics]:
    """Returns the statistics of the dense columns.

    Args:
        files: The lines of each file.
        names: The names of the files.
        options: The options of the run.

    Raises:
        ValueError: There are no rows, or no numbers to learn from.
    """
    log = options.schema.columns
    assert log
    if not any(column.learns for column in log.dense):
        return [learn(column, np.zeros(0)) for column in log.dense]
    at = sf.monotonically_increasing_id()
    rows = [_good_rows(lines, log).withColumn("at", at) for lines in files]
    offsets, total, rows_by_file = [], 0, []
    for frame in rows:
        partition = sf.shiftright("at", _LOW_BITS).alias("partition")
        counts: dict[int, int] = dict(frame.groupBy(partition).count().collect())
        before = []
        for index in range(max(counts, default=-1) + 1):
            before.append(total)
            total += counts.get(index, 0)
        offsets.append(before or [0])
        rows_by_file.append(sum(counts.values()))
    if not total:
        raise ValueError(f"{', '.join(names)}: expected rows, found none; give a raw click log")
    ranges = None if options.split.by_row else options.split.parts(rows_by_file, names)
    fields, sample = columns_of(log), []
    for frame, before in zip(rows, offsets):
        starts = sf.array(*(sf.lit(count).cast("bigint") for count in before))
        start = sf.get(starts, sf.shiftright("at", _LOW_BITS).cast("int"))
        number = start + sf.col("at").bitwiseAND(sf.lit((1 << _LOW_BITS) - 1))
        chosen = number % sample_stride(total) == 0
        if ranges is None:
            tag = row_expressions.tag(DIALECT, options.split, fields[str(log.split)])
            chosen = chosen & (tag == NAMES.index(TRAIN))
        else:
            inside = sf.lit(False)
            for part in ranges:
                if part.name == TRAIN:
                    inside = inside | ((number >= part.start) & (number < part.stop))
            chosen = chosen & inside
        values = [
            row_expressions.raw_number(DIALECT, column, fields[column.column], float("nan"))
            for column in log.dense
        ]
        sample += frame.filter(chosen).select(number, *values).collect()
    table = np.array(sorted(map(tuple, sample)), np.float64).reshape(-1, 1 + len(log.dense))
    return [learn(column, table[:, 1 + i]) for i, column in enumerate(log.dense)]


def _good_rows(lines: DataFrame, log: LogColumns) -> DataFrame:
    return with_fields(lines, log).filter("good").drop("value", "line", "pieces")


def _old_texts(session: SparkSession, folder: str, table: int) -> DataFrame:
    """Returns (feature, value, text) of a table of an earlier result; without one, no rows."""
    if not folder:
        return session.createDataFrame([], "feature int, value bigint, text string")
    path = f"{folder}/dictionary/table_{table}.parquet"
    frame: Any = session.read.parquet(path)
    if "text" not in frame.columns:
        raise ValueError(
            f"{path}: expected a column of texts, found {', '.join(frame.columns)}; give the same"
            " schema"
        )
    return frame.select(
        sf.lit(table).alias("feature"), sf.col("value").cast("bigint").alias("value"), "text"
    )
