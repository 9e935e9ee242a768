"""Looks up the ids of rows in Spark and makes records of them.

The frequencies of values differ by many orders of magnitude. The frequent values, as many as every
worker can hold, are looked up where the rows are. The others are joined over a shuffle, each with
the key of its row only, so that no complete row is ever shuffled for the join. Without the frequent
values no partition of that join is much larger than the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from preprocess.engine_spark.java import java_classes
from preprocess.engine_spark.slots import Slots
from preprocess.options import Options

_HOT_VALUES = 1 << 22  # 16 to 32 bytes each, on every worker


@dataclass(frozen=True)
class _HotIds:
    """The frequent values, which every worker holds.

    Attributes:
        ids: The Java object `HotIds`.
        slots: The array of its hash tables, as a broadcast variable.
        least: Values with at least this count are included; 0 if all values are.
    """

    ids: Any
    slots: Any
    least: int


def records(
    session: SparkSession, chunks: DataFrame, assignment: list[str], dictionary: DataFrame,
    options: Options,
) -> DataFrame:  # fmt: skip
    """Makes records in slices, and the ids that are missing in them.

    Args:
        session: Spark.
        chunks: The staged rows.
        assignment: The arguments of Java's `RowNumbers` and `BucketAssignment`.
        dictionary: The dictionary (feature, value, id, count).
        options: The options of the run.

    Returns:
        Rows (bucket, slice, key, slot, id) for Java's `RecordWriter`, in any order. A row has
        either a slice of records, or the id of a slot in the record with that key.
    """
    java = java_classes(session)
    hot = _hot(session, dictionary, options)
    slots = Slots(options)
    shared = [slots.floats, slots.text, *assignment, hot.ids, hot.slots]
    slices = java.rows(chunks, java.new("RecordMaker", *shared), "bucket int, slice binary")
    found = slices.selectExpr(
        "bucket", "slice", "cast(null as bigint) as key", "cast(null as int) as slot",
        "cast(null as int) as id",
    )  # fmt: skip
    if not hot.least:
        return found
    cold = java.rows(
        chunks,
        java.new("ColdValues", *shared),
        "bucket int, key bigint, slot int, feature int, value bigint",
    )
    rare = dictionary.filter(sf.col("count") < hot.least).drop("count")
    corrections = cold.join(rare, ["feature", "value"]).selectExpr(
        "bucket", "cast(null as binary) as slice", "key", "slot", "id"
    )
    return found.union(corrections)


def _hot(session: SparkSession, dictionary: DataFrame, options: Options) -> _HotIds:
    """Selects the frequent values and broadcasts their ids.

    Values are grouped by the number of binary digits of their count. Groups are included from the
    most frequent one down, as long as all of them together have at most `_HOT_VALUES` values.
    """
    java = java_classes(session)
    magnitude = sf.length(sf.bin("count")).alias("magnitude")
    found = {
        (row["feature"], row["magnitude"]): row["count"]
        for row in dictionary.groupBy("feature", magnitude).count().collect()
    }
    held, shortest = 0, 0  # values so far, and digits of the lowest count included
    for digits in sorted({digits for _, digits in found}, reverse=True):
        held += sum(count for (_, own), count in found.items() if own == digits)
        if held > _HOT_VALUES:
            shortest = digits + 1
            break
    sizes = [-1 if t in options.rules.hashed else 0 for t in range(options.num_categorical)]
    for (table, digits), count in found.items():
        sizes[table] += count if digits >= shortest else 0
    least = 1 << (shortest - 1) if shortest else 0
    ids = java.new("HotIds", " ".join(map(str, sizes)))
    frequent = dictionary.filter(sf.col("count") >= least).select("feature", "value", "id")
    packs = java.rows(frequent, java.new("IdPacker"), "pack binary")
    slots = ids.slots(packs._jdf.collectAsList())
    return _HotIds(ids, session.sparkContext._jsc.broadcast(slots), least)
