"""Final records in Spark: ids joined to the rows, rows dealt to buckets, buckets written.

A bucket is a stretch of a split's final order; its place in the output is known before it is
written, so that workers write side by side, and a bucket with a marker is never written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as sf

import checksums
from packing import Packing
from preprocess.engine_spark.session import writer_class
from preprocess.engine_spark.storage import Files
from preprocess.options import Options
from preprocess.outputs import OutputFile, output_files
from preprocess.rules import MIX_ROUNDS, MIX_STEP, shuffle_seed
from preprocess.splits import NAMES, TRAIN, Part

_BUCKET_ROWS = 1 << 18
_BROADCAST_VALUES = 1 << 20  # larger dictionaries are joined by a shuffle
_KEY_BITS = 64

Marker = dict[str, tuple[int, int]]
"""Bytes and CRC-32 of a bucket in each output file."""


@dataclass(frozen=True)
class Buckets:
    """The buckets of all splits.

    Attributes:
        rows: rows of each (tag, bucket).
        samples: rows of each split.
    """

    rows: dict[tuple[int, int], int]
    samples: dict[str, int]

    def starts(self) -> list[tuple[int, int, int]]:
        """Tag, bucket, and the rows of the split before it, in order."""
        before: dict[int, int] = {}
        found = []
        for tag, bucket in sorted(self.rows):
            found.append((tag, bucket, before.get(tag, 0)))
            before[tag] = before.get(tag, 0) + self.rows[tag, bucket]
        return found


def placed(
    rows: DataFrame, splits: Sequence[Part] | None, train: int, options: Options
) -> DataFrame:
    """Rows with their tag, their bucket and, as `key`, their order within it.

    Args:
        rows: with `row`, and `tag` if the row tells its split.
        splits: ranges of rows; None where the tag tells.
        train: rows that train, at least about.
        options: holds the seed of the shuffle.
    """
    number = sf.col("row")
    if splits is not None:
        tag: Column = sf.lit(0)
        for part in splits:
            inside = (number >= part.start) & (number < part.stop)
            tag = sf.when(inside, NAMES.index(part.name)).otherwise(tag)
        rows = rows.withColumn("tag", tag)
    key, bucket = number, (number / _BUCKET_ROWS).cast("int")
    if options.shuffle is not None:
        bits = max(1, (train // _BUCKET_ROWS).bit_length())
        shuffled = _shuffle_key(options.shuffle, number)
        trains = sf.col("tag") == NAMES.index(TRAIN)
        key = sf.when(trains, shuffled).otherwise(key)
        # The leading bits, as those of an unsigned number; within a bucket the sign is one.
        leading = sf.shiftrightunsigned(shuffled, _KEY_BITS - bits).cast("int")
        bucket = sf.when(trains, leading).otherwise(bucket)
    return rows.withColumn("key", key).withColumn("bucket", bucket)


def _shuffle_key(seed: int, number: Column) -> Column:
    """`rules.shuffle_key` as signed 64-bit numbers, whose products wrap."""
    word = number * _signed(MIX_STEP) + _signed(shuffle_seed(seed))
    for shift, factor in MIX_ROUNDS:
        word = word.bitwiseXOR(sf.shiftrightunsigned(word, shift)) * _signed(factor)
    return word


def _signed(word: int) -> Column:
    return sf.lit(word - (1 << _KEY_BITS) if word >> (_KEY_BITS - 1) else word).cast("bigint")


def count_buckets(rows: DataFrame, options: Options) -> Buckets:
    """How many rows each bucket has."""
    found = {
        (row["tag"], row["bucket"]): row["count"]
        for row in rows.groupBy("tag", "bucket").count().collect()
    }
    samples = dict.fromkeys(options.split.names, 0)
    for (tag, _), count in found.items():
        samples[NAMES[tag]] += count
    return Buckets(found, samples)


def with_ids(
    rows: DataFrame, dictionary: DataFrame, vocab_sizes: Sequence[int], options: Options
) -> DataFrame:
    """Rows whose columns c0.. hold final ids; 0 for what the dictionary lacks."""
    for table in range(options.num_categorical):
        ids = dictionary.filter(sf.col("feature") == table).select(
            sf.col("value").alias(f"v{table}"), sf.col("id").alias(f"i{table}")
        )
        if vocab_sizes[table] <= _BROADCAST_VALUES:
            ids = sf.broadcast(ids)
        rows = rows.join(ids, sf.col(f"c{table}") == sf.col(f"v{table}"), "left")
        rows = rows.withColumn(f"c{table}", sf.coalesce(f"i{table}", sf.lit(0)))
        rows = rows.drop(f"v{table}", f"i{table}")
    return rows


def read_markers(files: Files, work: Any) -> dict[tuple[int, int], Marker]:
    """The buckets that are on disk."""
    folder = files.child(work, "done")
    system = files.system(folder)
    found = {}
    if system.exists(folder):
        for status in system.listStatus(folder):
            if not str(status.getPath().getName()).startswith("."):
                marker = _parse_marker(files.read(status.getPath()))
                if marker:
                    found[marker[0]] = marker[1]
    return found


def _parse_marker(text: str) -> tuple[tuple[int, int], Marker] | None:
    """(tag, bucket) and sums, or None for a marker that was not written to its end."""
    words = text.split()
    if not words or words[-1] != "end":
        return None
    entries = zip(words[2:-1:3], words[3:-1:3], words[4:-1:3], strict=True)
    sums = {name: (int(size), int(crc)) for name, size, crc in entries}
    return (int(words[0]), int(words[1])), sums


def write_buckets(
    session: SparkSession,
    files: Files,
    work: Any,
    records: DataFrame,
    buckets: Buckets,
    options: Options,
    packing: Packing | None,
) -> None:
    """Writes buckets and their markers.

    Args:
        session: Spark.
        files: file systems.
        work: folder of the outputs, as a Hadoop path.
        records: rows as `placed` and `with_ids` leave them.
        buckets: all there are.
        options: what to write.
        packing: how ids are packed; None to leave them.
    """
    local = files.is_local(work)
    names = [f"d{column}" for column in range(options.num_dense)]
    names += [f"c{table}" for table in range(options.num_categorical)]
    ordered = (
        records.repartition("tag", "bucket")
        .sortWithinPartitions("tag", "bucket", "key")
        .select("tag", "bucket", "label", *names)
    )
    outputs = [o for split in options.split.names for o in output_files(options, split)]
    for output in outputs:
        files.system(work).mkdirs(files.child(work, output.name).getParent())
    folder = work.toUri().getPath() if local else work.toString()
    arguments = [
        folder,
        local,
        "\n".join(_file_line(output, packing) for output in outputs),
        "\n".join(f"{tag} {bucket} {before}" for tag, bucket, before in buckets.starts()),
        files.settings(),
    ]
    jvm: Any = session._jvm
    gateway: Any = session.sparkContext._gateway
    values = gateway.new_array(jvm.java.lang.Object, len(arguments))
    for index, argument in enumerate(arguments):
        values[index] = argument
    writer = writer_class(session).getConstructors()[0].newInstance(values)
    strings = jvm.org.apache.spark.sql.Encoders.STRING()
    ordered._jdf.mapPartitions(writer, strings).count()


def _file_line(output: OutputFile, packing: Packing | None) -> str:
    numbers = [NAMES.index(output.split), output.start, output.stop]
    words, places = 0, []
    if output.packed and packing:
        words = packing.words
        places = [number for field in packing.fields for number in (field.word, field.shift)]
    return " ".join(map(str, [*numbers, words, output.name, *places]))


def join_buckets(
    files: Files, work: Any, buckets: Buckets, options: Options
) -> dict[str, checksums.FileSum]:
    """Joins what was written as parts, and the checksums of all buckets.

    Returns:
        The checksum of each data file, by name.
    """
    markers = read_markers(files, work)
    assert set(markers) == set(buckets.rows), "every bucket is written"
    sums = {}
    for split in options.split.names:
        tag = NAMES.index(split)
        mine = [key for key in sorted(markers) if key[0] == tag]
        for output in output_files(options, split):
            size = crc = 0
            for key in mine:
                more, piece = markers[key][output.name]
                crc, size = checksums.combine(crc, piece, more), size + more
            sums[output.name] = checksums.FileSum(size, f"{crc:08x}")
            target = files.child(work, output.name)
            if not mine:
                files.system(target).create(target, True).close()
            elif not files.is_local(work):
                parts = [files.child(work, f"parts/{output.name}.{b:09}") for _, b in mine]
                # A run killed during the joining left the first part, which is all, or none.
                parts = [part for part in parts if files.system(part).exists(part)]
                if parts:
                    files.join(parts, target)
    return sums
