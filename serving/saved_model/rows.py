"""The rows of all tables in a SavedModel: looked up by key, and decoded.

Every operation is TensorFlow's own. The variables begin empty, with an unknown number of rows; who
fills them is no concern of this module. Shapes: K rows of W values in all T tables together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from dlrm.checkpoint.manifest import ModelShape
from dlrm.embedding import FusedTable
from serving.artifact import KnownIds
from serving.row_encoding import FLOAT16, INT8, INT8_ROWS, stored_spec
from serving.row_order import position_type


class SavedRows:
    """The rows by key.

    Args:
        shape: The shape of the tables.
        tables: How rows are stored, one of `TABLE_TYPES`.
        known: The ids with a row of their own; None if all have one.
        ordered: Whether rows lie in an order of their own, rather than by key.

    Attributes:
        variables: What is still empty, by name: `rows` [K, W], or more for int8_rows;
            `table_scales` [T] of int8; `known_keys` [n + 1], ascending, the last one beyond all;
            `positions` [K] of rows in an order of their own.
    """

    def __init__(
        self, shape: ModelShape, tables: str, known: KnownIds | None, *, ordered: bool
    ) -> None:
        self._shape, self._tables, self._known = shape, tables, known
        dtype, values = stored_spec(tables, shape.embedding_dim)
        # TensorFlow restores float16 in one piece only, so these are the bits.
        stored = tf.int16 if tables == FLOAT16 else tf.as_dtype(dtype)
        self.variables = {"rows": empty_variable("rows", stored, values)}
        if tables == INT8:
            self.variables["table_scales"] = empty_variable("table_scales", tf.float32)
        rows = sum(shape.vocab_sizes)
        if known is not None:
            rows = sum(known.counts) + len(known.counts)
            self.variables["known_keys"] = empty_variable("known_keys", tf.int64)
        if ordered:
            dtype = position_type(rows)
            self.variables["positions"] = empty_variable("positions", tf.as_dtype(dtype))

    def __call__(self, keys: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
        """Looks up keys, int64 [..., n], of tables [n], and decodes their rows [..., n, W]."""
        if self._known is None:
            return self._decoded(keys, tables)
        known_keys = self.variables["known_keys"]
        places = tf.searchsorted(known_keys, tf.reshape(keys, [-1]), out_type=tf.int64)
        places = tf.reshape(places, tf.shape(keys))
        known = tf.gather(known_keys, places) == keys
        # Each table has a row before those of its known ids, which all others share.
        counts = np.array(self._known.counts, np.int64)
        shared = np.cumsum(counts + 1) - counts - 1
        own = places + tf.cast(tables, tf.int64) + 1
        rows = self._decoded(tf.where(known, own, tf.gather(shared, tables)), tables)
        if self._known.seed is None:
            return rows
        table = FusedTable(self._shape.vocab_sizes, self._shape.embedding_dim, self._known.seed)
        unknown = tf.where(~known)
        initial = table.initial(tf.gather_nd(keys, unknown))
        return tf.tensor_scatter_nd_update(rows, unknown, initial)

    def _decoded(self, keys: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
        """Decodes rows that are counted in order of key; shapes as for a call."""
        if "positions" in self.variables:
            keys = tf.gather(self.variables["positions"], keys)
        rows = tf.gather(self.variables["rows"], keys)
        if self._tables == FLOAT16:
            return tf.cast(tf.bitcast(rows, tf.float16), tf.float32)
        if self._tables == INT8:
            scales = tf.gather(self.variables["table_scales"], tables)
            return tf.cast(rows, tf.float32) * scales[:, None]
        if self._tables == INT8_ROWS:
            width = self._shape.embedding_dim
            tail = rows[..., width:]
            tail = tf.reshape(tail, [*_shape_of(keys), 2, tf.float32.size])
            numbers = tf.bitcast(tail, tf.float32)  # [..., n, 2]: scale and bias
            return tf.cast(rows[..., :width], tf.float32) * numbers[..., :1] + numbers[..., 1:]
        return rows


def empty_variable(name: str, dtype: tf.DType, *width: int) -> tf.Variable:
    """A variable of an unknown number of rows, without any."""
    rows = tf.zeros([0, *width], dtype)
    return tf.Variable(rows, trainable=False, name=name, shape=[None, *width])


def _shape_of(tensor: tf.Tensor) -> list[Any]:
    """The sizes of a tensor of which the first may be unknown."""
    return [-1, *tensor.shape[1:]]
