"""What every system trains: the model's sizes, the batches and the first weights, read from files.

NumPy only, as each system runs in an environment of its own. The files:

    data/        a split folder in this project's format: the samples
    dense.npz    kernels [I, O] and biases [O] of the MLPs: bottom_kernel_0, bottom_bias_0, ...
    rows.npy     float32 [rows of all tables, W]: the tables, one behind the other
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dlrm.data import Batch, open_split

DATA, DENSE, ROWS = "data", "dense.npz", "rows.npy"
CHECKED_SAMPLES = 64  # whose rows are compared
SQUARE = 2048  # rows and columns of the large product's factors
Floats = NDArray[np.float32]
Layers = list[tuple[Floats, Floats]]  # kernel [I, O], bias [O]


@dataclass(frozen=True)
class TrainCase:
    """A model, and how it is trained.

    Attributes:
        shape: Its name in `benchmarks.shapes`.
        batch: Samples of a step.
        folder: The folder of the files.
        num_dense: Dense features of a sample.
        vocab_sizes: Rows of each table.
        bottom_mlp: Units of the bottom MLP's layers; the last is the width of the rows.
        top_mlp: Units of the top MLP's layers.
        lr: The learning rate of each step.
    """

    shape: str
    batch: int
    folder: str
    num_dense: int
    vocab_sizes: Sequence[int]
    bottom_mlp: Sequence[int]
    top_mlp: Sequence[int]
    lr: float

    @property
    def width(self) -> int:
        """Values of a row."""
        return self.bottom_mlp[-1]

    @property
    def first_keys(self) -> NDArray[np.int64]:
        """The row of each table's id 0 among the rows of all, int64 [T]."""
        sizes = np.array(self.vocab_sizes, np.int64)
        return np.cumsum(sizes) - sizes

    def batches(self) -> list[Batch]:
        """Reads all batches into memory."""
        source = open_split(Path(self.folder, DATA), False)
        starts = range(0, source.num_samples - self.batch + 1, self.batch)
        return [Batch(*source.read(s, s + self.batch), self.batch, s) for s in starts]

    def layers(self) -> tuple[Layers, Layers]:
        """Reads both MLPs; the rows of the first top kernel for the padding are left out."""
        with np.load(Path(self.folder, DENSE)) as dense:
            bottom, top = (
                [(dense[f"{mlp}_kernel_{i}"], dense[f"{mlp}_bias_{i}"]) for i in range(len(units))]
                for mlp, units in (("bottom", self.bottom_mlp), ("top", self.top_mlp))
            )
        tables = len(self.vocab_sizes)
        kernel, bias = top[0]
        top[0] = kernel[: self.width + tables * (tables + 1) // 2].copy(), bias
        return bottom, top

    def rows(self) -> Floats:
        """Maps the first rows of all tables, read only."""
        found: Floats = np.load(Path(self.folder, ROWS), mmap_mode="r")
        return found


def checksum(batches: Sequence[Batch]) -> str:
    """The CRC-32 of all dense values, ids and labels, as eight hexadecimal digits."""
    total = 0
    for batch in batches:
        for array in (batch.dense, batch.ids, batch.labels):
            total = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, total)
    return f"{total:08x}"


class Trainable(Protocol):
    """A system that has been built, with the first weights.

    Attributes:
        versions: Names and versions of what it runs on.
    """

    versions: str

    def train(self, batches: Sequence[int]) -> tuple[list[float], list[float]]:
        """Takes a step on each batch.

        Args:
            batches: The numbers of the batches.

        Returns:
            The seconds of each step; the loss of each batch before its update.
        """

    def rows(self, ids: NDArray[np.int32]) -> Floats:
        """Looks up the rows of ids [n, T] as they are now: float32 [n, T, W]."""
