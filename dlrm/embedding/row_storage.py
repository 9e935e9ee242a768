"""The interface of a storage of rows, and the layout of a row and its optimizer's state in it.

To a storage, rows and state are one array of float32 columns; only `RowLayout` distinguishes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.embedding.fused_table import FusedTable
from dlrm.optim.row_optimizers import StateColumns


@dataclass(frozen=True)
class RowLayout:
    """The columns of a stored row: first the row itself, then the optimizer's state.

    Attributes:
        table: The vocabulary, the width and the seed.
        state: What the optimizer keeps behind each row, in order.
    """

    table: FusedTable
    state: tuple[StateColumns, ...] = ()

    @property
    def width(self) -> int:
        """S, the number of values in a stored row."""
        return self.table.width + sum(columns.width for columns in self.state)

    def initial(self, keys: tf.Tensor) -> tf.Tensor:
        """What is stored for rows that were never updated; int64 [n] -> float32 [n, S]."""
        count = tf.size(keys)
        state = [tf.fill([count, columns.width], columns.initial) for columns in self.state]
        return self.join(self.table.initial(keys), state)

    def rows_of(self, stored: tf.Tensor) -> tf.Tensor:
        """The rows among the columns; [n, S] -> [n, W]."""
        return stored[:, : self.table.width] if self.state else stored

    def state_of(self, stored: tf.Tensor) -> list[tf.Tensor]:
        """Each entry of `state` among the columns; [n, S] -> [n, columns.width] each."""
        parts, begin = [], self.table.width
        for columns in self.state:  # slices: tf.split would copy the rows too
            parts.append(stored[:, begin : begin + columns.width])
            begin += columns.width
        return parts

    def join(self, rows: tf.Tensor, state: Sequence[tf.Tensor]) -> tf.Tensor:
        """Puts rows [n, W] and their state side by side: [n, S]."""
        assert len(state) == len(self.state), "one tensor for each entry of the state"
        return tf.concat([rows, *state], axis=1) if self.state else rows


class RowStorage(Protocol):
    """The rows that one rank owns.

    The compiled functions of a step call `addresses`, `read` and `write`, those of an evaluation
    `fetch`; checkpoints call `read_rows` and `write_rows`, which count local rows.

    Attributes:
        shared: Number of rows that keys without a row of their own share, one for each table; they
            have the addresses 0 to `shared` - 1, and are the same on every rank. 0 if every key has
            its own.
    """

    shared: int

    @property
    def layout(self) -> RowLayout:
        """The columns of a stored row."""

    @property
    def key_dtype(self) -> tf.DType:
        """The integer type in which this storage takes keys."""

    def addresses(self, keys: tf.Tensor) -> tf.Tensor:
        """What `read` and `write` call the rows of keys that this rank owns; [n] -> [n].

        The keys are the distinct ones of a training batch.
        """

    def read(self, addresses: tf.Tensor) -> tf.Tensor:
        """Stored rows; [n] -> float32 [n, S]."""

    def fetch(self, keys: tf.Tensor) -> tf.Tensor:
        """Stored rows of keys that this rank owns, in no training batch; [n] -> float32 [n, S]."""

    def write(self, addresses: tf.Tensor, stored: tf.Tensor) -> None:
        """Overwrites stored rows; the addresses [n] are distinct, `stored` is float32 [n, S]."""

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """A copy of local rows [first, last), float32 [last - first, S]."""

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """Overwrites local rows, int64 [n], with float32 [n, S]."""


class Sightings(NamedTuple):
    """What a storage of occurring keys knows of them, first those that have a row, ascending.

    Attributes:
        keys: int64 [n].
        counts: int32 [n, 2], the number of steps whose batch held the key, since it was last
            forgotten, and the last of these steps.
        rows: Number of keys that have a row.
    """

    keys: NDArray[np.int64]
    counts: NDArray[np.int32]
    rows: int


@runtime_checkable
class OccurringRows(RowStorage, Protocol):
    """A storage that has rows of those keys alone that occur.

    Checkpoints ask it for `sightings`; `read_rows` and `write_rows` then count rows in their order.
    """

    def begin_step(self, step: int) -> None:
        """Says which step the batches belong to whose keys `addresses` is given from now on."""

    def sightings(self) -> Sightings:
        """What is known of the keys."""

    def clear(self) -> None:
        """Forgets all keys; the shared rows begin anew."""

    def put(self, sightings: Sightings, stored: NDArray[np.float32]) -> None:
        """Takes over what another storage knew of keys that this one does not know.

        Args:
            sightings: The keys.
            stored: float32 [sightings.rows, S], the rows of the first keys.
        """

    def read_shared(self) -> NDArray[np.float32]:
        """The shared rows, float32 [shared, S]."""

    def write_shared(self, stored: NDArray[np.float32]) -> None:
        """Overwrites the shared rows, the same on every rank, with float32 [shared, S]."""
