"""Writes records in Spark: rows are assigned to buckets, and buckets are written.

A bucket is a contiguous range of a split in its final order. Its position in the output is known
before it is written, so that workers write in parallel. A bucket that has a marker is never written
again. A worker holds one bucket at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from dlrm.formats import checksums, splitmix64
from dlrm.formats.packed_ids import Packing
from dlrm.formats.zip_strict import zip_strict
from preprocess.engine_spark.java import java_classes
from preprocess.engine_spark.slots import Slots
from preprocess.engine_spark.storage import HadoopFiles
from preprocess.options import Options
from preprocess.outputs import IDS, OFFSETS, WEIGHTS, OutputFile, output_files
from preprocess.rules import shuffle_seed
from preprocess.splits import NAMES, RowRange

_BUCKET_BYTES = 1 << 25
_KEY_BITS = 64

Marker = dict[str, tuple[int, int]]
"""Size in bytes and CRC-32 of a bucket in each output file, by name."""


@dataclass(frozen=True)
class Buckets:
    """The buckets of all splits, numbered consecutively over the splits.

    Attributes:
        rows: The number of rows of each bucket.
        ids: For each bucket, the number of ids of each table with bags.
        size: The number of buckets reserved for each split.
    """

    rows: dict[int, int]
    ids: dict[int, tuple[int, ...]]
    size: int

    def of_split(self, name: str) -> list[int]:
        """Returns the buckets of a split, in order."""
        return [bucket for bucket in sorted(self.rows) if bucket // self.size == NAMES.index(name)]

    def samples(self, names: Iterable[str]) -> dict[str, int]:
        """Returns the number of rows of each split."""
        return {name: sum(self.rows[bucket] for bucket in self.of_split(name)) for name in names}

    def starts(self) -> list[tuple[int, ...]]:
        """Returns where each bucket begins.

        Returns:
            The bucket, its tag, the rows of the split before it, its rows, and for each table with
            bags the ids of the split before it.
        """
        found = []
        for tag, name in enumerate(NAMES):
            before, ids = 0, [0] * max(map(len, self.ids.values()), default=0)
            for bucket in self.of_split(name):
                found.append((bucket, tag, before, self.rows[bucket], *ids))
                before += self.rows[bucket]
                ids = [sum(pair) for pair in zip_strict(ids, self.ids[bucket])]
        return found


@dataclass(frozen=True)
class BucketAssignment:
    """The parameters of Java's `BucketAssignment`, which assigns rows to buckets.

    Attributes:
        offsets: The result of `row_offsets`.
        splits: The row ranges of the splits; None if each row has a tag.
        rows: The number of good rows of all files.
        options: The options of the run.
    """

    offsets: str
    splits: Sequence[RowRange] | None
    rows: int
    options: Options

    @property
    def _bucket_rows(self) -> int:
        return max(1, _BUCKET_BYTES // (4 * Slots(self.options).width))

    @property
    def _bits(self) -> int:
        """Number of leading bits of a shuffle key that are the bucket's index.

        It is enough even if all rows are for training.
        """
        return max(1, (self.rows // self._bucket_rows).bit_length())

    @property
    def split_buckets(self) -> int:
        """The number of buckets reserved for each split."""
        return 1 << self._bits

    def arguments(self, done: Iterable[int] = ()) -> list[str]:
        """Returns the arguments of Java's `RowNumbers` and `BucketAssignment`.

        Args:
            done: The buckets whose rows are not needed.
        """
        parts = [(NAMES.index(part.name), part.start, part.stop) for part in self.splits or []]
        shuffle: list[int] = []
        if self.options.shuffle is not None:
            factors = [word for turn in splitmix64.ROUNDS for word in turn]
            shuffle = [self._bits, splitmix64.GAMMA, shuffle_seed(self.options.shuffle), *factors]
        return [
            self.offsets,
            _words(number for part in parts for number in part),
            _words([self._bucket_rows, self.split_buckets]),
            _words(map(_signed, shuffle)),
            _words(done),
        ]


def _words(words: Iterable[object]) -> str:
    return " ".join(map(str, words))


def _signed(word: int) -> int:
    """Returns an unsigned 64-bit number as Java's signed long."""
    return word - (1 << _KEY_BITS) if word >> (_KEY_BITS - 1) else word


def count_buckets(chunks: DataFrame, assignment: BucketAssignment) -> Buckets:
    """Counts the rows of each bucket, and the ids of its bags."""
    java = java_classes(chunks.sparkSession)
    options = assignment.options
    slots, ids = Slots(options), [f"ids_{bag.table}" for bag in options.bags]
    if not ids:
        # The bytes of the rows are not read, because their numbers determine the buckets.
        chunks = chunks.selectExpr("file", "partition", "before", "rows", "tags", "null as data")
    counter = java.new("BucketCounter", slots.floats, slots.text, *assignment.arguments())
    schema = ", ".join(["bucket int", *(f"{name} bigint" for name in ("rows", *ids))])
    counts = java.rows(chunks, counter, schema).groupBy("bucket").sum("rows", *ids).collect()
    return Buckets(
        {row[0]: row[1] for row in counts},
        {row[0]: tuple(row[2:]) for row in counts},
        assignment.split_buckets,
    )


def read_markers(files: HadoopFiles, work: Any) -> dict[int, Marker]:
    """Returns the markers of the buckets that are on disk, by bucket."""
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


def _parse_marker(text: str) -> tuple[int, Marker] | None:
    """Returns a bucket and its marker, or None if the marker is incomplete."""
    words = text.split()
    if not words or words[-1] != "end":
        return None
    entries = zip_strict(words[1:-1:3], words[2:-1:3], words[3:-1:3])
    sums = {name: (int(size), int(crc)) for name, size, crc in entries}
    return int(words[0]), sums


def write_buckets(
    session: SparkSession,
    files: HadoopFiles,
    work: Any,
    records: DataFrame,
    buckets: Buckets,
    options: Options,
    packing: Packing | None,
) -> None:
    """Writes buckets and their markers.

    Args:
        session: Spark.
        files: The file systems.
        work: The folder of the outputs, as a Hadoop path.
        records: The result of `preprocess.engine_spark.lookup.records`.
        buckets: All buckets.
        options: The options of the run.
        packing: The packing of the ids; None leaves them.
    """
    local = files.is_local(work)
    outputs = [o for split in options.split.names for o in output_files(options, split)]
    for output in outputs:
        files.system(work).mkdirs(files.child(work, output.name).getParent())
    java = java_classes(session)
    writer = java.new(
        "RecordWriter",
        work.toUri().getPath() if local else work.toString(),
        local,
        "\n".join(_file_line(output, packing, options) for output in outputs),
        Slots(options).width,
        Slots(options).count,
        "\n".join(map(_words, buckets.starts())),
        files.settings(),
    )
    # Null sorts before numbers, so that slices come before the ids that correct them.
    ordered = records.repartition("bucket").sortWithinPartitions("bucket", "slot")
    java.rows(ordered, writer, "bucket int").count()


def _file_line(output: OutputFile, packing: Packing | None, options: Options) -> str:
    slots, tag, bag = Slots(options), NAMES.index(output.split), output.bag
    if bag:
        first = slots.weights(bag) if output.content == WEIGHTS else slots.ids(bag)
        words = -1 - (IDS, OFFSETS, WEIGHTS).index(output.content)
        place = [slots.ids(bag), options.bags.index(bag)]
        return _words([tag, first, first + bag.max_ids, words, output.name, *place])
    start = slots.column(output.start)
    numbers = [tag, start, start + output.stop - output.start]
    words, fields = 0, []
    if output.packed and packing:
        words = packing.words
        fields = [number for field in packing.fields for number in (field.word, field.shift)]
    return _words([*numbers, words, output.name, *fields])


def join_buckets(
    files: HadoopFiles, work: Any, buckets: Buckets, options: Options
) -> dict[str, checksums.FileSum]:
    """Joins the parts of each output file, and the checksums of all buckets.

    Returns:
        The checksum of each data file, by name.
    """
    markers = read_markers(files, work)
    assert set(markers) == set(buckets.rows), "every bucket is written"
    sums = {}
    for split in options.split.names:
        mine = buckets.of_split(split)
        for output in output_files(options, split):
            size = crc = 0
            for bucket in mine:
                more, piece = markers[bucket][output.name]
                crc, size = checksums.combine(crc, piece, more), size + more
            sums[output.name] = checksums.FileSum(size, f"{crc:08x}")
            target = files.child(work, output.name)
            if not mine:
                nothing = bytes(8 if output.content == OFFSETS else 0)
                stream = files.system(target).create(target, True)
                stream.write(bytearray(nothing))
                stream.close()
                sums[output.name] = checksums.FileSum(len(nothing), f"{zlib.crc32(nothing):08x}")
            elif not files.is_local(work):
                parts = [files.child(work, f"parts/{output.name}.{bucket:09}") for bucket in mine]
                # A run killed while joining left only the first part, then complete, or none.
                parts = [part for part in parts if files.system(part).exists(part)]
                if parts:
                    files.join(parts, target)
    return sums
