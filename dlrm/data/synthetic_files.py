"""Synthetic samples as a split folder, for runs that read from disk.

The files are those that split_bin.py writes: labels and ids of int32, dense values of float32.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.data.synthetic import SyntheticSource
from dlrm.formats import atomic_files, file_names
from dlrm.formats.bag_files import BagWriter, bag_file_names
from dlrm.formats.bags import Bags, ids_of_tables
from dlrm.formats.checksums import FileSum, RunningSum, remove_checksums, write_checksums
from dlrm.formats.json_files import read_json_object, write_json_object
from dlrm.formats.metadata import Metadata, write_metadata

_DESCRIPTION = "synthetic.json"  # which samples the folder holds

_BLOCK_SAMPLES = 1 << 16


def write_synthetic(folder: Path, source: SyntheticSource) -> None:
    """Writes a source's samples, unless the folder has them; other processes wait meanwhile.

    Args:
        folder: The folder for `label.bin` and the others; created if missing.
        source: The samples.

    Raises:
        ValueError: The folder holds something else.
        OSError: It cannot be written.
    """
    wanted = {"samples": source.fingerprint, "vocab_sizes": list(source.vocab_sizes)}
    description = folder / _DESCRIPTION
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder):
        if not (folder / file_names.METADATA).exists():
            sums = _write_columns(folder, source)
            write_checksums(folder, sums)
            write_json_object(description, wanted)
            write_metadata(folder, _layout(source))  # last: the folder is complete
        elif not description.exists() or read_json_object(description, "remove it") != wanted:
            raise ValueError(
                f"{folder}: expected no samples or the synthetic ones of this run, found others; "
                "set another --synthetic_dataset_dir, or remove the folder"
            )


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Waits until no other process writes here; a lock ends with its process, whatever happens."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_columns(folder: Path, source: SyntheticSource) -> dict[str, FileSum]:
    """Writes the columns and bags; returns their checksums by file name."""
    remove_checksums(folder)
    singles = _layout(source).single_tables
    names = [name for name in file_names.COLUMN_FILES if singles or name != file_names.CATEGORY]
    sums = [RunningSum() for _ in names]
    names += [name for bag in source.bags for name in bag_file_names(bag)]
    paths = [folder / name for name in names]
    with atomic_files.whole_files(paths) as temporaries, contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(open(path, "wb")) for path in temporaries[: len(sums)]]
        bags = iter(temporaries[len(sums) :])
        writers = [
            stack.enter_context(BagWriter(bag, [next(bags) for _ in bag_file_names(bag)]))
            for bag in source.bags
        ]
        for first in range(0, source.num_samples, _BLOCK_SAMPLES):
            last = min(first + _BLOCK_SAMPLES, source.num_samples)
            dense, ids, labels = source.read(first, last)
            columns: list[NDArray[Any]] = [labels.astype(np.int32), dense]
            if isinstance(ids, Bags):
                tables = ids_of_tables(ids)
                for writer, bag in zip(writers, source.bags):
                    writer.write(ids.lengths[bag.table], tables[bag.table])
                columns += [np.stack([tables[table] for table in singles], 1)] if singles else []
            else:
                columns.append(ids)
            for column, output, running in zip(columns, outputs, sums):
                data = column.reshape(-1).view(np.uint8).data
                with atomic_files.naming(output.name):
                    output.write(data)
                    output.flush()
                running.update(data)
        stack.close()  # before the files get their names
    values = [total.value for total in sums] + [total for w in writers for total in w.sums]
    return dict(zip(names, values))


def _layout(source: SyntheticSource) -> Metadata:
    return Metadata(
        vocab_sizes=source.vocab_sizes,
        label_raw_type="int32",
        dense_raw_type="float32",
        category_raw_type="int32",
        dense_log=False,
        num_dense=source.num_dense,
        bags=source.bags,
    )
