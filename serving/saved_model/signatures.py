"""The graph of a SavedModel: from ids, packed ids or raw values to logits.

Every operation is TensorFlow's own. Variables that may be large begin empty, with an unknown number
of rows; who fills them, and from which files, is no concern of this module.

Shapes: B samples of D dense features, T tables, C columns of ids (`IdColumns`; T without bags), K
rows of W values in all tables together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import ModelShape
from dlrm.formats.packed_ids import Packing
from dlrm.train.dense_part import as_tf_variable
from serving.artifact import KnownIds
from serving.id_columns import NO_ID, IdColumns
from serving.saved_model.rows import SavedRows, empty_variable

Outputs = dict[str, tf.Tensor]

_VALUE_BITS = 32  # of a raw value in a key of the dictionary; the table is above them


@dataclass(frozen=True)
class DictionaryRules:
    """How raw values become ids and dense features, beside the dictionary's entries.

    Attributes:
        moduli: What the values of each table are divided by, the rest being looked up; 0 for none.
        missing_is_value: Whether a missing value counts as the value 0; otherwise it gets id 0.
        lowest_dense: The lowest value of each dense column.
        dense_log_offset: What is added to a dense value before its logarithm is taken.
    """

    moduli: tuple[int, ...]
    missing_is_value: bool
    lowest_dense: tuple[int, ...]
    dense_log_offset: float

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> DictionaryRules:
        """Takes the rules from `dictionary` of an artifact's description."""
        return cls(
            tuple(modulus or 0 for modulus in content["moduli"]),
            content["missing_is_value"],
            tuple(content["lowest_dense"]),
            content["dense_log_offset"],
        )


class SavedScorer(tf.Module):
    """Holds the variables and makes the signatures.

    Args:
        model: The dense part, built, with its weights.
        shape: The shape of tables and dense part.
        tables: How rows are stored, one of `TABLE_TYPES`.
        packing: How ids are packed.
        rules: The rules of the dictionary; None leaves the signature `raw` out.
        known: The ids with a row of their own; None if all have one.
        ordered: Whether rows lie in an order of their own, rather than by key.
    """

    def __init__(
        self,
        model: keras.Model,
        shape: ModelShape,
        tables: str,
        packing: Packing,
        rules: DictionaryRules | None,
        known: KnownIds | None,
        *,
        ordered: bool,
    ) -> None:
        super().__init__(name="dlrm")
        self._call = model.call  # a bound method: the model itself stays out of the SavedModel
        self._shape, self._packing, self._rules = shape, packing, rules
        self._weights = [as_tf_variable(weight) for weight in model.variables]
        sizes = np.array(shape.vocab_sizes, np.int64)
        self._columns = IdColumns.of_model(shape)
        of_column = self._columns.tables
        self._sizes = sizes[of_column]  # [C]
        self._offsets = (np.cumsum(sizes) - sizes)[of_column]  # [C]
        self._rows = SavedRows(shape, tables, known, ordered=ordered)
        pending = dict(self._rows.variables)
        if rules is not None:
            pending["dictionary_values"] = empty_variable("dictionary_values", tf.int64)  # [n]
            pending["dictionary_ids"] = empty_variable("dictionary_ids", tf.int32)  # [n]
        for name, variable in pending.items():
            setattr(self, name, variable)  # which is their name in the SavedModel
        self._pending = tuple(pending)

    def pending(self) -> dict[str, tf.DType]:
        """The variables that are still empty, and their types."""
        return {name: getattr(self, name).dtype for name in self._pending}

    def signatures(self) -> dict[str, Any]:
        """Makes the signatures: `serving_default`; `packed` without bags; `raw` with a dictionary.

        Each returns `logits` and `probabilities`, float32 [B].
        """
        columns, width = self._shape.num_dense, self._columns.width
        dense = tf.TensorSpec([None, columns], tf.float32, "dense")
        weights = [tf.TensorSpec([None, width], tf.float32, "weights")] * self._columns.weights
        made = {"serving_default": (self.score, dense, _ids_spec(width, tf.int32, "ids"), *weights)}
        if not self._columns.bags:
            words = _ids_spec(self._packing.words, tf.int32, "words")
            made["packed"] = (self.score_packed, dense, words)
        if self._rules is not None:
            raw = tf.TensorSpec([None, columns], tf.int32, "dense")
            made["raw"] = (self.score_raw, raw, _ids_spec(width, tf.int64, "values"), *weights)
        return {
            name: tf.function(function, input_signature=specs, autograph=False)
            for name, (function, *specs) in made.items()
        }

    def score(self, dense: tf.Tensor, ids: tf.Tensor, weights: tf.Tensor | None = None) -> Outputs:
        """Scores samples.

        Args:
            dense: float32 [B, D], as the model was trained on them.
            ids: int32 [B, C].
            weights: float32 [B, C], where the model takes weights.
        """
        sizes = tf.constant(self._sizes)
        wide = tf.cast(ids, tf.int64)
        none = (wide == NO_ID) & tf.constant(self._columns.may_be_empty)
        good = (wide >= 0) & (wide < sizes)
        checks = [
            _check(
                good | none if self._columns.bags else good,
                "sample {}, table {}: expected an id in [0, {}), found {}",
                lambda sample, column: [sizes[column], ids[sample, column]],
                self._columns.tables,
            ),
            _check(
                tf.math.is_finite(dense),
                "sample {}, dense column {}: expected a finite value, found {}",
                lambda sample, column: [dense[sample, column]],
            ),
        ]
        if weights is not None:
            text = "sample {}, table {}: expected finite weights, found {}"
            good = tf.math.is_finite(weights) | none
            checks.append(_check(good, text, lambda *place: [weights[place]], self._columns.tables))
        with tf.control_dependencies(checks):
            keys = wide + tf.constant(self._offsets)  # [B, C]
        vectors = self._pooled(keys, ~none, weights) if self._columns.bags else self._vectors(keys)
        logits = self._call(dense, vectors)
        return {"logits": logits, "probabilities": tf.sigmoid(logits)}

    def score_packed(self, dense: tf.Tensor, words: tf.Tensor) -> Outputs:
        """Scores samples whose ids are packed.

        Args:
            dense: float32 [B, D], as for `score`.
            words: int32 [B, words].
        """
        fields = self._packing.fields
        shifts = tf.constant([field.shift for field in fields], tf.uint32)
        masks = tf.constant([(1 << field.bits) - 1 for field in fields], tf.uint32)
        columns = tf.gather(words, [field.word for field in fields], axis=1)  # [B, T]
        shifted = tf.bitwise.right_shift(tf.bitcast(columns, tf.uint32), shifts)
        return self.score(dense, tf.bitcast(tf.bitwise.bitwise_and(shifted, masks), tf.int32))

    def score_raw(
        self, dense: tf.Tensor, values: tf.Tensor, weights: tf.Tensor | None = None
    ) -> Outputs:
        """Scores samples as they stand in a log.

        Args:
            dense: int32 [B, D], 0 for a missing value.
            values: int64 [B, C], the fields' numbers of 32 bits, -1 for a missing one and for what
                is left of a bag's columns.
            weights: As for `score`.
        """
        assert self._rules is not None
        good = _check(
            (values >= -1) & (values < 1 << _VALUE_BITS),
            "sample {}, table {}: expected a value of 32 bits or -1, found {}",
            lambda sample, column: [values[sample, column]],
            self._columns.tables,
        )
        with tf.control_dependencies([good]):
            ids = self._ids(values)
        raised = tf.maximum(dense, tf.constant(self._rules.lowest_dense, tf.int32))
        offset = tf.constant(self._rules.dense_log_offset, tf.float32)
        return self.score(tf.math.log(tf.cast(raised, tf.float32) + offset), ids, weights)

    def _ids(self, values: tf.Tensor) -> tf.Tensor:
        """Looks raw values up in the dictionary; those that it lacks get id 0, int32 [B, C]."""
        assert self._rules is not None
        divisors = np.array(self._rules.moduli, np.int64)[self._columns.tables]
        divisors[divisors == 0] = 1 << _VALUE_BITS
        found = tf.maximum(values, 0) % tf.constant(divisors)
        tables = self._columns.tables << _VALUE_BITS
        keys = tf.reshape(found + tf.constant(tables), [-1])  # [B C]
        entries = tf.shape(self.dictionary_values, out_type=tf.int64)[0]
        places = tf.searchsorted(self.dictionary_values, keys, out_type=tf.int64)
        places = tf.maximum(tf.minimum(places, entries - 1), 0)
        known = tf.gather(self.dictionary_values, places) == keys
        ids = tf.where(known, tf.gather(self.dictionary_ids, places), 0)
        ids = tf.reshape(ids, tf.shape(values))
        missing = values < 0
        if not self._rules.missing_is_value:
            ids = tf.where(missing, 0, ids)
        return tf.where(missing & tf.constant(self._columns.may_be_empty), NO_ID, ids)

    def _pooled(self, keys: tf.Tensor, there: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
        """The sums and means of bags, float32 [B, T, W].

        Args:
            keys: int64 [B, C].
            there: bool [B, C], whether there is an id.
            weights: float32 [B, C], or None.
        """
        tables = len(self._shape.vocab_sizes)
        place = tf.where(there)  # [V, 2]: sample and column
        table = tf.gather(tf.constant(self._columns.tables), place[:, 1])  # [V]
        rows = self._rows(tf.gather_nd(keys, place), table)  # [V, W]
        if weights is not None:
            rows *= tf.gather_nd(weights, place)[:, None]
        bags = tf.shape(keys, out_type=tf.int64)[0] * tables
        bag = place[:, 0] * tables + table
        sums = tf.math.unsorted_segment_sum(rows, bag, bags)  # [B T, W]
        counts = tf.math.unsorted_segment_sum(tf.ones_like(bag, tf.float32), bag, bags)
        means = np.array(self._shape.pooling) == "mean"
        counts = tf.where(tf.constant(means), tf.reshape(tf.maximum(counts, 1), [-1, tables]), 1)
        return tf.reshape(sums, [-1, tables, self._shape.embedding_dim]) / counts[:, :, None]

    def _vectors(self, keys: tf.Tensor) -> tf.Tensor:
        """Looks up keys, int64 [B, T], and decodes their rows, float32 [B, T, W]."""
        return self._rows(keys, tf.range(keys.shape[1]))


def _ids_spec(columns: int, dtype: tf.DType, name: str) -> tf.TensorSpec:
    return tf.TensorSpec([None, columns], dtype, name)


def _check(
    good: tf.Tensor,
    text: str,
    found: Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor]],
    names: NDArray[np.int64] | None = None,
) -> tf.Tensor:
    """Refuses values that are not all good.

    Args:
        good: bool [B, columns].
        text: The message, with gaps for the sample, the column, and what `found` adds.
        found: Gives what fills the further gaps, from sample and column.
        names: What each column is called, int64 [columns]; None for its number.

    Returns:
        What the use of the values must wait for, bool [].
    """

    def refuse() -> tf.Tensor:
        sample, column = tf.unstack(tf.where(~good)[0])
        name = column if names is None else tf.constant(names)[column]
        message = tf.strings.format(text, [sample, name, *found(sample, column)])
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.constant(False)

    # What the message needs is computed only where there is one.
    return tf.cond(tf.reduce_all(good), lambda: tf.constant(True), refuse)
