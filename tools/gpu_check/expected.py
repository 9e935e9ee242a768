"""What tables and interaction must give, in NumPy float64: the references of tools.gpu_check.

Calls the tables and the interaction by their interfaces; runs and verdicts are left to the checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dlrm import embedding
from dlrm.distributed.collective import Collective
from dlrm.layers.interaction_width import interaction_width

VOCAB_SIZES, WIDTH, SAMPLES = (50, 7, 1000), 16, 64
LEARNING_RATE = 0.5


class IdCase(NamedTuple):
    """Ids to look up, and the settings for them.

    Attributes:
        name: The name in the report.
        compress: Whether the exchange sends each distinct id once.
        bad_ids: What to do with ids outside their table, as `--bad_ids` says it.
        ids: int64 [size, samples, tables], the ids of all ranks.
    """

    name: str
    compress: bool
    bad_ids: str
    ids: Any


def id_cases(size: int) -> Iterator[IdCase]:
    """Yields plain, repeated, no and out-of-range ids, without and with `compress`."""
    generator = np.random.default_rng(5)
    plain = generator.integers(0, VOCAB_SIZES, [size, SAMPLES, len(VOCAB_SIZES)])
    beyond = plain.copy()
    beyond[:, ::3, 1] += VOCAB_SIZES[1]
    beyond[:, 1::5, 2] = -1
    for compress, note in (False, ""), (True, ", compressed"):
        yield IdCase(f"plain ids{note}", compress, "error", plain)
        yield IdCase(f"repeated ids{note}", compress, "error", plain // 1000)
        yield IdCase(f"no ids{note}", compress, "error", plain[:, :0])
        yield IdCase(f"ids out of range, clipped{note}", compress, "clip", beyond)
        yield IdCase(f"ids out of range, zero{note}", compress, "zero", beyond)
        yield IdCase(f"ids out of range, modulo{note}", compress, "modulo", beyond)


def table_error(tables: embedding.Embedding, collective: Collective, case: IdCase) -> float:
    """Looks up and updates once; returns the largest relative error of vectors and rows.

    Args:
        tables: The tables to check; they keep the update.
        collective: The ranks.
        case: The ids of all ranks.
    """
    ids, rank, size, table = case.ids, collective.rank, collective.size, tables.table
    rows = table.initial(tf.range(table.rows, dtype=tf.int64)).numpy().astype(np.float64)
    inside = (ids >= 0) & (ids < table.vocab_sizes)
    sizes = np.array(table.vocab_sizes)
    safe = ids % sizes if case.bad_ids == "modulo" else np.clip(ids, 0, sizes - 1)
    keys = safe + table.offsets
    valid = inside if case.bad_ids == "zero" else np.ones_like(inside)
    expected = rows[keys[rank]] * valid[rank][..., None]
    gradients = np.random.default_rng(7).standard_normal([*ids.shape, table.width], np.float32)
    np.subtract.at(rows, keys[valid], LEARNING_RATE * gradients[valid].astype(np.float64))

    @tf.function(autograph=False)
    def step(ids: tf.Tensor, gradient: tf.Tensor) -> Any:
        lookup = tables.lookup(tables.route(ids))
        tables.update(lookup, [gradient], tf.constant(LEARNING_RATE))
        return lookup.vectors[0]

    vectors = step(tf.constant(ids[rank], tf.int32), tf.constant(gradients[rank])).numpy()
    own = np.arange(rank, table.rows, size)
    found = tables.read_rows(0, len(own))
    return max(relative(vectors, expected), relative(found, rows[own]))


def interaction_error(interact: Any, dtype: str, tables: int, width: int) -> float:
    """Returns the largest relative error of the output and of both gradients.

    Args:
        interact: The interaction; it maps [batch, width] and [batch, tables, width] to
            [batch, output width].
        dtype: Type of its inputs and output.
        tables: Number of vectors in addition to the bottom one.
        width: Values of a vector.
    """
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
    """Returns the norm of the difference divided by the norm of what was expected."""
    if not expected.size:
        return 0.0
    return float(np.linalg.norm(found - expected)) / float(np.linalg.norm(expected))
