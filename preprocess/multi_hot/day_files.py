"""MLPerf's files of a day: `day_N_sparse_multi_hot.npz`, `day_N_dense.npy`, `day_N_labels.npy`.

The archive holds one array for each table, named "0", "1" and so on, int32 [samples, ids of each];
dense values are float32 [samples, columns], after the logarithm; labels are int32 [samples, 1].
Archives are read as streams: no array is ever whole in memory.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.data import SplitSource
from dlrm.formats import atomic_files, file_names
from dlrm.formats.bag_files import ID_TYPE
from dlrm.formats.metadata import Metadata, read_metadata
from preprocess.multi_hot.folders import bag_tables, whole_folder

BLOCK_SAMPLES = 1 << 16


class Day(NamedTuple):
    """The files of one day.

    Attributes:
        sparse: The archive of ids.
        dense: The dense values.
        labels: The labels.
    """

    sparse: Path
    dense: Path
    labels: Path

    @classmethod
    def of(cls, folder: Path, number: int) -> Day:
        """The files of a day in a folder."""
        names = ("sparse_multi_hot.npz", "dense.npy", "labels.npy")
        return cls(*(folder / f"day_{number}_{name}" for name in names))


def write_day(folder: Path, out: Path, number: int) -> Day:
    """Writes a split folder of equally long bags as the files of a day.

    Raises:
        ValueError: A table's bags differ in their numbers of ids, or have weights or a mean.
        OSError: A file cannot be read or written.
    """
    source, description = SplitSource(folder), read_metadata(folder)
    samples, day = source.num_samples, Day.of(out, number)
    arrays: dict[int, NDArray[Any]] = {}
    for bag in description.bags:
        path = folder / file_names.bag_ids(bag.table)
        if path.stat().st_size != samples * bag.max_ids * 4 or bag.weights or bag.pooling != "sum":
            raise ValueError(
                f"{path}: expected {bag.max_ids} ids in each bag, without weights and pooled by "
                "their sum, as MLPerf's files hold them, found others"
            )
        arrays[bag.table] = np.memmap(path, ID_TYPE, "r", shape=(samples, bag.max_ids))
    if description.packed_ids is not None:
        raise ValueError(f"{folder}: expected one id in each word, found packed ids; write it anew")
    if singles := description.single_tables:
        shape = (samples, len(singles))
        category = np.memmap(folder / file_names.CATEGORY, ID_TYPE, "r", shape=shape)
        arrays.update((table, category[:, [column]]) for column, table in enumerate(singles))
    out.mkdir(parents=True, exist_ok=True)
    dense, _, labels = source.read(0, samples)
    with atomic_files.whole_files(day) as (sparse_file, dense_file, labels_file):
        with open(sparse_file, "wb") as file:
            named: Any = {str(table): arrays[table] for table in sorted(arrays)}
            np.savez(file, **named)
        for path, values in ((dense_file, dense), (labels_file, labels[:, None].astype("<i4"))):
            with open(path, "wb") as file:
                np.save(file, values)
    return day


def read_days(days: Sequence[Day], out: Path, table_sizes: Sequence[int]) -> int:
    """Writes the files of some days, one after the other, as one split folder.

    Args:
        days: The days.
        out: The folder to write.
        table_sizes: Number of rows of each table, by which ids are taken modulo.

    Returns:
        The number of samples.

    Raises:
        ValueError: A file is malformed or does not fit the others, or `out` holds data.
        OSError: A file cannot be read or written.
    """
    dense = [np.load(day.dense, mmap_mode="r") for day in days]
    labels = [np.load(day.labels, mmap_mode="r").reshape(-1) for day in days]
    samples = [len(values) for values in labels]
    shapes = [_shapes(day, len(table_sizes)) for day in days]
    hotness = [shape[1] for shape in shapes[0]]
    for day, count, values, found in zip(days, samples, dense, shapes):
        if found != [(count, ids) for ids in hotness] or len(values) != count:
            raise ValueError(
                f"{day.sparse}: expected {count} samples, as {day.labels.name} has, of "
                f"{','.join(map(str, hotness))} ids, found arrays of {found} and "
                f"{len(values)} rows in {day.dense.name}; give files of one data set"
            )
    description = Metadata(
        vocab_sizes=tuple(table_sizes),
        label_raw_type="int32",
        dense_raw_type="float32",
        category_raw_type="int32",
        dense_log=False,
        num_dense=dense[0].shape[1],
        bags=bag_tables(hotness),
    )
    with whole_folder(out, description) as writer:
        writer.column(file_names.LABEL, (block.astype("<i4") for block in _blocks(labels)))
        writer.column(file_names.DENSE, (block.astype("<f4") for block in _blocks(dense)))
        singles = description.single_tables
        if singles:
            blocks = (block for day in days for block in _ids(day, singles, table_sizes))
            writer.column(file_names.CATEGORY, blocks)
        for bag in description.bags:
            blocks = (block for day in days for block in _ids(day, [bag.table], table_sizes))
            writer.bags(bag, blocks)
    return sum(samples)


def _blocks(days: Sequence[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Yields the rows of several arrays, block by block."""
    for values in days:
        for start in range(0, len(values), BLOCK_SAMPLES):
            yield values[start : start + BLOCK_SAMPLES]


def _ids(day: Day, tables: Sequence[int], sizes: Sequence[int]) -> Iterator[NDArray[np.int32]]:
    """Yields the ids of some tables side by side, modulo their sizes, block by block."""
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(day.sparse))
        streams = [stack.enter_context(archive.open(f"{table}.npy")) for table in tables]
        shapes = [_header(stream, day.sparse) for stream in streams]
        for start in range(0, shapes[0][0], BLOCK_SAMPLES):
            count = min(BLOCK_SAMPLES, shapes[0][0] - start)
            parts = []
            for stream, table, (_, width) in zip(streams, tables, shapes):
                data = stream.read(count * width * 4)
                part = np.frombuffer(data, ID_TYPE).reshape(count, width)
                parts.append(part % np.int32(min(sizes[table], 2**31 - 1)))
            yield np.concatenate(parts, axis=1)


def _shapes(day: Day, tables: int) -> list[tuple[int, int]]:
    """The shape of each table's array."""
    try:
        with zipfile.ZipFile(day.sparse) as archive:
            shapes = []
            for table in range(tables):
                with archive.open(f"{table}.npy") as stream:
                    shapes.append(_header(stream, day.sparse))
            return shapes
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{day.sparse}: expected an archive of arrays 0 to {tables - 1}, one for each table, "
            f"found {error}; give MLPerf's file, and as many --table_sizes as it has tables"
        ) from None


def _header(stream: IO[bytes], path: Path) -> tuple[int, int]:
    """Reads the header of an array: its shape, [samples, ids of each]."""
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(shape) != 2 or fortran or dtype != np.dtype(ID_TYPE):
        raise ValueError(
            f"{path}: expected arrays of int32 [samples, ids], by rows, found {dtype} "
            f"{list(shape)}; give MLPerf's file"
        )
    return shape
