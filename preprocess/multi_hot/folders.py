"""Writes split folders with bags, table by table, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files, file_names
from dlrm.formats.bag_files import BagWriter, bag_file_names
from dlrm.formats.bags import BagTable
from dlrm.formats.checksums import FileSum, RunningSum, remove_checksums, write_checksums
from dlrm.formats.metadata import Metadata, write_metadata

Blocks = Iterable[NDArray[Any]]


def bag_tables(hotness: Sequence[int]) -> tuple[BagTable, ...]:
    """The tables of more than one id, pooled by their sum."""
    return tuple(BagTable(table, "sum", count) for table, count in enumerate(hotness) if count > 1)


@dataclass
class FolderWriter:
    """Writes the files of a split folder in any order.

    Attributes:
        temporaries: Where each file is written, by its final name.
        sums: The sums of the files written.
    """

    temporaries: dict[str, Path]
    sums: dict[str, FileSum] = field(default_factory=dict)

    def column(self, name: str, blocks: Blocks) -> None:
        """Writes a column file from blocks of its values."""
        running = RunningSum()
        with open(self.temporaries[name], "wb") as file:
            for block in blocks:
                data = np.ascontiguousarray(block).view(np.uint8).data
                with atomic_files.naming(file.name):
                    file.write(data)
                running.update(data)
        self.sums[name] = running.value

    def bags(self, bag: BagTable, blocks: Blocks) -> None:
        """Writes one table's bags from blocks of ids, int32 [samples, ids of each]."""
        names = bag_file_names(bag)
        with BagWriter(bag, [self.temporaries[name] for name in names]) as writer:
            for block in blocks:
                lengths = np.full(len(block), block.shape[1], np.int32)
                writer.write(lengths, np.ascontiguousarray(block).reshape(-1))
        self.sums.update(zip(names, writer.sums))


@contextlib.contextmanager
def whole_folder(folder: Path, description: Metadata) -> Iterator[FolderWriter]:
    """Yields the writer of all files of a folder, which get their names when all are complete.

    Raises:
        ValueError: The folder holds data already.
    """
    if (folder / file_names.METADATA).exists():
        raise ValueError(f"{folder}: expected no data, found some; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    names = [file_names.LABEL, file_names.DENSE]
    names += [file_names.CATEGORY] if description.single_tables else []
    names += [name for bag in description.bags for name in bag_file_names(bag)]
    finals = [folder / name for name in names]
    with atomic_files.whole_files(finals, lambda: remove_checksums(folder)) as temporaries:
        writer = FolderWriter(dict(zip(names, temporaries)))
        yield writer
    write_metadata(folder, description)
    write_checksums(folder, writer.sums)
