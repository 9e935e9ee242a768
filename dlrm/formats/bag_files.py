"""The files of one table's bags: ids, offsets and weights, written and read block by block.

Bag i of a table is ids offsets[i] to offsets[i + 1] - 1. What `dlrm.data` makes of bags is its
concern.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.formats import atomic_files, file_names
from dlrm.formats.bags import BagTable
from dlrm.formats.checksums import FileSum, RunningSum
from dlrm.formats.column_file import REMEDY, ColumnFile

ID_TYPE, OFFSET_TYPE, WEIGHT_TYPE = "<i4", "<i8", "<f4"


def bag_file_names(bag: BagTable) -> list[str]:
    """The names of a table's files: ids, offsets and, if it has them, weights."""
    names = [file_names.bag_ids(bag.table), file_names.bag_offsets(bag.table)]
    return [*names, file_names.bag_weights(bag.table)] if bag.weights else names


class BagWriter:
    """Writes the files of one table's bags.

    Example:
        names = bag_file_names(bag)
        with atomic_files.whole_files([folder / name for name in names]) as temporaries:
            with BagWriter(bag, temporaries) as writer:
                writer.write(lengths, ids)
        write_checksums(folder, dict(zip(names, writer.sums)))

    Args:
        bag: The table.
        paths: Where to write the files of `bag_file_names`, in their order.
        name: The table's name in messages.

    Raises:
        OSError: A file cannot be opened.
    """

    def __init__(self, bag: BagTable, paths: Sequence[Path], name: str = "") -> None:
        self._bag = bag
        self._name = name or f"table {bag.table}"
        with contextlib.ExitStack() as stack:
            self._files = [stack.enter_context(open(path, "wb")) for path in paths]
            self._open = stack.pop_all()
        self._sums = [RunningSum() for _ in paths]
        self._samples = self._total = 0
        self._write(1, np.zeros(1, OFFSET_TYPE))

    @property
    def sums(self) -> list[FileSum]:
        """The sums of what was written, in the order of the files."""
        return [running.value for running in self._sums]

    def write(
        self, lengths: NDArray[Any], ids: NDArray[Any], weights: NDArray[Any] | None = None
    ) -> None:
        """Appends the bags of some samples.

        Args:
            lengths: Integers [samples], the number of ids of each.
            ids: Integers [sum of lengths]; their range is the caller's concern.
            weights: Floats [sum of lengths]; None for a table without weights.

        Raises:
            ValueError: The arrays do not fit each other, or a bag is too long.
        """
        assert (weights is None) != self._bag.weights, "weights exactly where the table has them"
        if len(lengths) and not 0 <= lengths.min() <= lengths.max() <= self._bag.max_ids:
            bad = int(np.argmax((lengths < 0) | (lengths > self._bag.max_ids)))
            raise ValueError(
                f"{self._name}, sample {self._samples + bad}: expected 0 to {self._bag.max_ids} "
                f"ids (max_ids), found {lengths[bad]}; raise max_ids, or shorten the bag"
            )
        ends = self._total + np.cumsum(lengths, dtype=OFFSET_TYPE)
        total = int(ends[-1]) if len(ends) else self._total
        for values in (ids,) if weights is None else (ids, weights):
            if len(values) != total - self._total:
                raise ValueError(
                    f"{self._name}: expected {total - self._total} ids and weights by their "
                    f"lengths, found {len(values)}"
                )
        self._write(0, ids.astype(ID_TYPE, copy=False))
        self._write(1, ends)
        if weights is not None:
            self._write(2, weights.astype(WEIGHT_TYPE, copy=False))
        self._samples, self._total = self._samples + len(lengths), total

    def close(self) -> None:
        """Closes the files."""
        self._open.close()

    def __enter__(self) -> BagWriter:
        """Returns the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the files."""
        self.close()

    def _write(self, file: int, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).view(np.uint8).data
        with atomic_files.naming(self._files[file].name):
            self._files[file].write(data)
        self._sums[file].update(data)


class BagFiles:
    """The open files of one table's bags. Opening them checks that their sizes fit each other.

    Args:
        folder: The split folder.
        bag: The table.
        samples: Number of samples of the folder.

    Attributes:
        bag: As given.
        total: Number of ids of all samples.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is truncated or does not fit the others.
    """

    def __init__(self, folder: Path, bag: BagTable, samples: int) -> None:
        self.bag = bag
        self.offsets = ColumnFile(
            folder / file_names.bag_offsets(bag.table), OFFSET_TYPE, 1, samples + 1
        )
        first, self.total = (int(self.offsets.read(row, row + 1)[0, 0]) for row in (0, samples))
        if first or self.total < 0:
            raise ValueError(
                f"{self.offsets.path}: expected a first offset of 0 and a last one of 0 or more, "
                f"found {first} and {self.total}; {REMEDY}"
            )
        counted = f"ids (the last offset of {self.offsets.path.name})"
        self.ids = ColumnFile(
            folder / file_names.bag_ids(bag.table), ID_TYPE, 1, self.total, counted=counted
        )
        self.weights = None
        if bag.weights:
            path = folder / file_names.bag_weights(bag.table)
            self.weights = ColumnFile(path, WEIGHT_TYPE, 1, self.total, counted=counted)

    @property
    def files(self) -> list[ColumnFile]:
        """The files in the order of `bag_file_names`."""
        return [self.ids, self.offsets, *([self.weights] if self.weights else [])]

    def read_lengths(self, start: int, stop: int, out: NDArray[np.int32]) -> int:
        """Reads the number of ids in each bag of samples [start, stop).

        Args:
            start: The first sample.
            stop: The sample after the last one.
            out: int32 [samples], where to write them.

        Returns:
            The position of the first of their ids in the file of ids.

        Raises:
            ValueError: An offset is less than the one before it, or a bag is too long.
        """
        offsets = self.offsets.read(start, stop + 1)[:, 0]
        lengths = np.diff(offsets)
        # An offset beyond the file is caught too: the last of all offsets is the file's end.
        if len(lengths) and not 0 <= lengths.min() <= lengths.max() <= self.bag.max_ids:
            self._raise_length(start, lengths)
        first = int(offsets[0])
        if first < 0 or int(offsets[-1]) > self.total:
            raise ValueError(
                f"{self.offsets.path}: samples {start} to {stop - 1}: expected offsets from 0 to "
                f"{self.total}, found {first} to {offsets[-1]}; {REMEDY}"
            )
        np.copyto(out, lengths, casting="unsafe")
        return first

    def _raise_length(self, start: int, lengths: NDArray[np.int64]) -> None:
        bad = int(np.argmax((lengths < 0) | (lengths > self.bag.max_ids)))
        raise ValueError(
            f"{self.offsets.path}: sample {start + bad}: expected 0 to {self.bag.max_ids} ids "
            f"(max_ids), found {lengths[bad]}; {REMEDY}, or correct max_ids in metadata.json"
        )
