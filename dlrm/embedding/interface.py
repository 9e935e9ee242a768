"""The interface of the embedding tables: all that the rest of the system relies on.

The training step, checkpoints and tools are typed against `Embedding`. Only `dlrm.embedding.create`
decides which class implements it and where the rows are kept.

Shapes: B local batch, T tables of the group, W width of a row, S width of a stored row (the row
and the optimizer's state), U distinct rows that this rank reads, K keys that it sends, R keys that
it receives, N ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Union

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.embedding.bag_group import BagGroup
from dlrm.embedding.fused_table import FusedTable
from dlrm.embedding.route import Lookup, Route
from dlrm.embedding.row_storage import OccurringRows
from dlrm.embedding.table_group import TableGroup
from dlrm.embedding.traffic import Traffic
from dlrm.formats.bags import Bags
from dlrm.optim.row_optimizers import StateColumns

Ids = Union[tf.Tensor, "list[tf.Tensor]", "tuple[tf.Tensor, ...]", Bags]


class Embedding(Protocol):
    """This rank's share of the tables. All ranks make the same calls in the same order."""

    @property
    def table(self) -> FusedTable:
        """Vocabulary, width and seed."""

    @property
    def state(self) -> tuple[StateColumns, ...]:
        """What the optimizer keeps behind each row, in order; empty if it keeps nothing."""

    @property
    def local_rows(self) -> int:
        """Number of rows that this rank owns."""

    @property
    def groups(self) -> Sequence[TableGroup | BagGroup]:
        """The parts of `route`, `lookup` and `update`, one by one, for each group of tables."""

    def ids_spec(self, batch: int) -> tf.TensorSpec | Bags:
        """Shape and type of the ids of a batch of this many samples."""

    def ids_of_groups(self, ids: Ids) -> list[Any]:
        """Cuts the ids of a batch, as `route` takes them, into those of each group of tables."""

    def route(self, ids: Ids) -> tuple[Route, ...]:
        """Sends the keys of a batch to their owners. Reads no weights, so it can run early.

        Args:
            ids: int32 or int64 [B, all tables]; or a tuple or list with such a tensor [B, T] for
                each group of tables, where each group has a B of its own; or, where the tables
                hold bags, `Bags` of tensors.

        Returns:
            A route for each group of tables.
        """

    def lookup(self, routes: Sequence[Route]) -> Lookup:
        """Fetches the vectors of a routed batch."""

    def fetch(self, ids: tf.Tensor | Bags) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        """Routes a batch and fetches its vectors, which get no gradients.

        An owner reads a row as often as it is asked for, and does not search for distinct rows.

        Args:
            ids: int32 [B, T], or `Bags`.

        Returns:
            The `Lookup.vectors` of the batch; and int32 [], the sum of its `Route.bad`.
        """

    @property
    def shares_rows(self) -> bool:
        """Whether ids without a row of their own share that of their table."""

    @property
    def dynamic(self) -> OccurringRows | None:
        """Where the rows lie if only ids that occur have one; else None."""

    def begin_step(self, step: int) -> None:
        """Says that `route` is given the ids of the batch of this step from now on.

        Where ids come and go, `fetch` finds the rows that there are at its begin.

        Args:
            step: Number of the step, from 1.
        """

    def exchange_gradients(
        self, lookup: Lookup, gradients: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, ...]:
        """Sends the gradients of vectors to the owners of their rows.

        Args:
            lookup: The lookup of this batch.
            gradients: The gradients of `lookup.vectors`, of their shapes.

        Returns:
            For each group of tables the gradients that this rank received, [R, W].
        """

    def squares(self, lookup: Lookup, received: Sequence[tf.Tensor]) -> tf.Tensor:
        """Adds up the squares of what `update_rows` would sum by row.

        A row has one owner, so the sum over ranks is the square of the tables' gradient's norm,
        without the shared rows.

        Args:
            lookup: The lookup of this batch.
            received: What `exchange_gradients` returned.

        Returns:
            float32 [], of the rows that this rank owns.
        """

    def shared_gradients(
        self, lookup: Lookup, received: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, ...]:
        """Sums the gradients of the shared rows that this rank received.

        Args:
            lookup: The lookup of this batch.
            received: What `exchange_gradients` returned.

        Returns:
            float32 [T, W] for each group of tables; none if no rows are shared.
        """

    def update_rows(
        self,
        lookup: Lookup,
        received: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor = 1.0,
        shared: Sequence[tf.Tensor] = (),
    ) -> None:
        """Sums the gradients of each row's vectors over all ranks and takes an optimizer step.

        Every write waits for `learning_rate`. So a check that the step may be taken at all can be
        made a control dependency of it.

        Args:
            lookup: The lookup of this batch; the tables must not have been updated since.
            received: What `exchange_gradients` returned.
            learning_rate: float32 [].
            gradient_scale: The gradient of the loss is `gradient_scale` times such a sum; a number,
                or float32 [].
            shared: The sums of `shared_gradients` over all ranks.
        """

    def update(
        self,
        lookup: Lookup,
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
        gradient_scale: float | tf.Tensor = 1.0,
    ) -> None:
        """Calls `exchange_gradients` and, with what it returns, `update_rows`.

        No rows may be shared.
        """

    def traffic(self, routes: Sequence[Route]) -> Traffic:
        """Counts the bytes that this rank sends to the others in the step of these routes."""

    def read_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """A copy of local rows [first, last) and their state, float32 [last - first, S]."""

    def write_rows(self, rows: NDArray[np.int64], stored: NDArray[np.float32]) -> None:
        """Overwrites local rows and their state.

        Args:
            rows: int64 [n].
            stored: float32 [n, S].
        """
