"""The types that saving and restoring share: the state of a run, and what is recorded of it.

Independent of files and of how ranks communicate.
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

    from dlrm.embedding.row_storage import OccurringRows
    from dlrm.optim.row_optimizers import StateColumns

PIECE_BYTES = 16 << 20  # A rank holds a few pieces in addition to its tables.

TextCallback = Callable[[str], None]


def ignore(text: str) -> None:
    """Does nothing; the default callback."""


class MisfitError(ValueError):
    """A complete checkpoint that was written by another kind of run."""


class Tables(Protocol):
    """This rank's rows, and the optimizer's state behind each of them."""

    @property
    def state(self) -> tuple[StateColumns, ...]:
        """The columns behind a row, in order."""

    @property
    def dynamic(self) -> OccurringRows | None:
        """Where the rows lie if only ids that occurred have one; else None."""

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Local rows [first, last) with their state, float32 [last - first, width + state]."""

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """Overwrites local rows, int64 [n], and their state with float32 [n, width + state]."""


class State(NamedTuple):
    """What training changes.

    Attributes:
        dense: Weights and optimizer state of the dense layers by name, the same on every rank.
        tables: This rank's rows and their optimizer state.
    """

    dense: Mapping[str, tf.Variable]
    tables: Tables


@dataclass(frozen=True)
class RunRecord:
    """What a checkpoint records of the run, and must fit when it is loaded.

    Attributes:
        model: The shape of the weights.
        settings: The value of every flag, by name.
        data: The fingerprint of each part of the data, by name.
        affect_training: Names of the settings of which another value trains another model. A run
            that resumes with such a setting changed says so.
    """

    model: ModelShape
    settings: Mapping[str, Any]
    data: Mapping[str, str]
    affect_training: frozenset[str] = frozenset()


def pieces(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Cuts rows of `width` float32 values into pieces [first, last) of about `PIECE_BYTES`.

    There is at least one piece, so that a rank without rows takes part in the same number of rounds
    as the others.
    """
    step = max(1, PIECE_BYTES // (4 * width))
    for first in range(0, max(rows, 1), step):
        yield first, min(first + step, rows)
