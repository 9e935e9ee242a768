"""Rows of a table in the host's memory, read and updated where they lie.

Elsewhere a step gathers the distinct rows, gathers vectors from these, sums gradients by row,
computes the new rows and scatters them: five passes by operations of TensorFlow, which wait for the
memory at every row. The project's own operations for CPUs take one pass each way, ask for each row
ahead of its use, and give the same bits.
"""

from __future__ import annotations

import tensorflow as tf

from dlrm import cpu_ops
from dlrm.cpu_ops import CpuOps
from dlrm.embedding.dynamic_storage import DynamicStorage
from dlrm.embedding.partition import for_cpus
from dlrm.embedding.row_storage import RowLayout, RowStorage
from dlrm.embedding.variable_storage import VariableStorage
from dlrm.optim.row_optimizers import RowOptimizer, RowSGD


class InPlaceRows:
    """The rows of a variable, for an optimizer.

    Args:
        handle: The resource that holds the rows, [local rows, S].
        layout: The columns of a stored row.
        operations: The operations for CPUs.
        descends: Whether the optimizer is plain SGD, whose step is taken in place.

    Attributes:
        descends: As given.
    """

    def __init__(
        self, handle: tf.Tensor, layout: RowLayout, operations: CpuOps, *, descends: bool
    ) -> None:
        self.descends = descends
        self._handle = handle
        self._width = layout.table.width
        self._operations = operations

    def read(self, rows: tf.Tensor, row_of: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads a vector for each key.

        Args:
            rows: int32 [U], local rows.
            row_of: int32 [R], for each key, the position of its row in `rows`.

        Returns:
            float32 [R, W], the vectors; and float32 [U, S], the rows as they are stored, or [0, S]
            if the optimizer does not ask for them.
        """
        vectors, stored = self._operations.read_rows(
            self._handle, rows, row_of, width=self._width, keep=not self.descends
        )
        return vectors, stored

    def descend(
        self, rows: tf.Tensor, row_of: tf.Tensor, gradients: tf.Tensor, step_size: tf.Tensor
    ) -> None:
        """Subtracts `step_size` times the sum of each row's gradients [R, W] from the row."""
        assert self.descends, "only SGD's step is taken in place"
        self._operations.descend_rows(self._handle, rows, row_of, gradients, step_size)


def in_place_rows(storage: RowStorage, optimizer: RowOptimizer) -> InPlaceRows | None:
    """The rows of a storage, if they can be read and updated where they lie; else None."""
    descends = isinstance(optimizer, RowSGD)
    if isinstance(storage, DynamicStorage):
        # Shared rows take a step with the gradients of all ranks.
        descends = descends and not storage.shared
        return InPlaceRows(storage.handle, storage.layout, cpu_ops.load(), descends=descends)
    if not isinstance(storage, VariableStorage):
        return None
    operations = for_cpus(tf.zeros([0], storage.key_dtype))
    if operations is None or storage.key_dtype != tf.int32:  # which numbers rows in them
        return None
    return InPlaceRows(storage.variable.handle, storage.layout, operations, descends=descends)
