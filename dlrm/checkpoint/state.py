"""What a checkpoint holds of a run, in the terms that saving and restoring share.

Knows nothing of files or of how ranks talk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import ModelShape

if TYPE_CHECKING:
    import tensorflow as tf

PIECE_BYTES = 16 << 20  # moved at a time; a rank holds a few of them beside its tables

Told = Callable[[str], None]


def unheard(what: str) -> None:
    """Tells nobody."""


class Tables(Protocol):
    """This rank's rows: local row r is key r * size + rank."""

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Local rows [first, last), float32 [last - first, width]."""

    def write_rows(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Overwrites local rows, int64 [n], with float32 [n, width]."""


class State(NamedTuple):
    """What training changes: dense weights by name, the same on every rank, and the tables."""

    dense: Mapping[str, tf.Variable]
    tables: Tables


@dataclass(frozen=True)
class Run:
    """What a checkpoint records of the run, and must fit when it is loaded.

    Attributes:
        model: the shape of the weights.
        settings: every flag.
        data: a fingerprint of each part of the data.
    """

    model: ModelShape
    settings: Mapping[str, Any]
    data: Mapping[str, str]


def pieces(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Cuts rows of `width` float32 values into pieces [first, last) of `PIECE_BYTES`, at least one.

    At least one, so that a rank without rows does as many pieces of work as the others.
    """
    step = max(1, PIECE_BYTES // (4 * width))
    for first in range(0, max(rows, 1), step):
        yield first, min(first + step, rows)
