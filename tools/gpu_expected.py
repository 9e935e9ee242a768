"""What tables and interaction must give, in NumPy float64: the references of tools.gpu_check.

Knows the interface of the tables and of the interaction; nothing of runs or verdicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dlrm import embedding
from dlrm.distributed.collective import Collective
from dlrm.layers.dot_interaction import interaction_width

VOCAB_SIZES, WIDTH, SAMPLES = (50, 7, 1000), 16, 64
LEARNING_RATE = 0.5


class IdCase(NamedTuple):
    """Ids of all ranks, int64 [size, samples, tables], and the settings that they are for."""

    name: str
    compress: bool
    bad_ids: str
    ids: Any


def id_cases(size: int) -> Iterator[IdCase]:
    """Plain, repeated, no and out-of-range ids, with and without `compress`."""
    generator = np.random.default_rng(5)
    plain = generator.integers(0, VOCAB_SIZES, [size, SAMPLES, len(VOCAB_SIZES)])
    beyond = plain.copy()
    beyond[:, ::3, 1] += VOCAB_SIZES[1]
    beyond[:, 1::5, 2] = -1
    for compress in (False, True):
        yield IdCase("plain ids", compress, "error", plain)
        yield IdCase("repeated ids", compress, "error", plain // 1000)
        yield IdCase("no ids", compress, "error", plain[:, :0])
        yield IdCase("ids out of range, clipped", compress, "clip", beyond)
        yield IdCase("ids out of range, zero", compress, "zero", beyond)


def table_error(tables: embedding.Embedding, collective: Collective, case: IdCase) -> float:
    """One lookup and update; the largest relative error of vectors and of this rank's rows."""
    ids, rank, size, table = case.ids, collective.rank, collective.size, tables.table
    rows = table.initial(tf.range(table.rows, dtype=tf.int64)).numpy().astype(np.float64)
    inside = (ids >= 0) & (ids < table.vocab_sizes)
    keys = np.clip(ids, 0, np.array(table.vocab_sizes) - 1) + table.offsets
    there = inside if case.bad_ids == "zero" else np.ones_like(inside)
    expected = rows[keys[rank]] * there[rank][..., None]
    gradients = np.random.default_rng(7).standard_normal([*ids.shape, table.width], np.float32)
    np.subtract.at(rows, keys[there], LEARNING_RATE * gradients[there].astype(np.float64))

    @tf.function
    def step(ids: tf.Tensor, gradient: tf.Tensor) -> Any:
        lookup = tables.lookup(tables.route(ids))
        tables.update(lookup, [gradient], tf.constant(LEARNING_RATE))
        return lookup.vectors[0]

    vectors = step(tf.constant(ids[rank], tf.int32), tf.constant(gradients[rank])).numpy()
    own = np.arange(rank, table.rows, size)
    found = tables.read_rows(0, len(own))
    return max(relative(vectors, expected), relative(found, rows[own]))


def interaction_error(interact: Any, dtype: str, tables: int, width: int) -> float:
    """The largest relative error of the output and both gradients."""
    batch = 257
    generator = np.random.default_rng(11)
    shapes = [batch, width], [batch, tables, width], [batch, interaction_width(width, tables)]
    given = [tf.cast(tf.constant(generator.standard_normal(s, np.float32)), dtype) for s in shapes]
    with tf.GradientTape() as tape:
        tape.watch(given[:2])
        output = interact(*given[:2])
    found = [output, *tape.gradient(output, given[:2], output_gradients=given[2])]
    bottom, vectors, upstream = (tf.cast(tensor, tf.float64).numpy() for tensor in given)
    x = np.concatenate([bottom[:, None], vectors], axis=1)
    row, column = np.tril_indices(tables + 1, -1)
    pairs = (x @ x.transpose(0, 2, 1))[:, row, column]
    symmetric = np.zeros([batch, tables + 1, tables + 1])
    above = upstream[:, width : width + len(row)]
    symmetric[:, row, column] = symmetric[:, column, row] = above
    gradient = symmetric @ x
    padding = np.zeros([batch, shapes[2][1] - width - len(row)])
    expected = [
        np.concatenate([bottom, pairs, padding], axis=1),
        gradient[:, 0] + upstream[:, :width],
        gradient[:, 1:],
    ]
    return max(
        relative(tf.cast(tensor, tf.float64).numpy(), values)
        for tensor, values in zip(found, expected)
    )


def relative(found: Any, expected: Any) -> float:
    """Norm of the difference over the norm of what was expected."""
    if not expected.size:
        return 0.0
    return float(np.linalg.norm(found - expected)) / float(np.linalg.norm(expected))
