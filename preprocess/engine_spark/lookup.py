"""Ids for rows in Spark, and records of them.

Values differ in how often they come by many orders of magnitude. The frequent ones, as many as
every worker can hold, are looked up where the rows are. The others are joined over a shuffle, each
alone with its row's key, so that no row is ever joined as a whole; without the frequent ones no
partition of that join is much larger than the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from preprocess.engine_spark.java import java_classes
from preprocess.options import Options

_HOT_VALUES = 1 << 22  # in 16 to 32 bytes each, on every worker


@dataclass(frozen=True)
class _HotIds:
    """What every worker holds.

    Attributes:
        ids: Java's `HotIds`.
        slots: Its array, as a broadcast.
        least: The lowest count of a value in it; 0 if all values are.
    """

    ids: Any
    slots: Any
    least: int


def records(
    session: SparkSession, chunks: DataFrame, assignment: list[str], dictionary: DataFrame,
    options: Options,
) -> DataFrame:  # fmt: skip
    """Records in slices, and ids to correct them by: (bucket, slice, key, feature, id).

    Args:
        session: Spark.
        chunks: Staged rows.
        assignment: What Java's `RowNumbers` and `BucketAssignment` take.
        dictionary: (feature, value, id, count).
        options: The columns there are.

    Returns:
        Rows as Java's `RecordWriter` takes them, but in any order: a slice of records, or the id of
        one value that `feature` has in the record of that key.
    """
    java = java_classes(session)
    hot = _hot(session, dictionary, options)
    shared = [options.num_dense, options.num_categorical, *assignment, hot.ids, hot.slots]
    slices = java.rows(chunks, java.new("RecordMaker", *shared), "bucket int, slice binary")
    found = slices.selectExpr(
        "bucket", "slice", "cast(null as bigint) as key", "cast(null as int) as feature",
        "cast(null as int) as id",
    )  # fmt: skip
    if not hot.least:
        return found
    cold = java.rows(
        chunks, java.new("ColdValues", *shared), "bucket int, key bigint, feature int, value bigint"
    )
    rare = dictionary.filter(sf.col("count") < hot.least).drop("count")
    corrections = cold.join(rare, ["feature", "value"]).selectExpr(
        "bucket", "cast(null as binary) as slice", "key", "feature", "id"
    )
    return found.union(corrections)


def _hot(session: SparkSession, dictionary: DataFrame, options: Options) -> _HotIds:
    java = java_classes(session)
    # Of a count the binary digits.
    magnitude = sf.length(sf.bin("count")).alias("magnitude")
    found = {
        (row["feature"], row["magnitude"]): row["count"]
        for row in dictionary.groupBy("feature", magnitude).count().collect()
    }
    held, shortest = 0, 0
    for digits in sorted({digits for _, digits in found}, reverse=True):
        held += sum(count for (_, own), count in found.items() if own == digits)
        if held > _HOT_VALUES:
            shortest = digits + 1
            break
    sizes = [0] * options.num_categorical
    for (table, digits), count in found.items():
        sizes[table] += count if digits >= shortest else 0
    least = 1 << (shortest - 1) if shortest else 0
    ids = java.new("HotIds", " ".join(map(str, sizes)))
    frequent = dictionary.filter(sf.col("count") >= least).select("feature", "value", "id")
    packs = java.rows(frequent, java.new("IdPacker"), "pack binary")
    slots = ids.slots(packs._jdf.collectAsList())
    return _HotIds(ids, session.sparkContext._jsc.broadcast(slots), least)
