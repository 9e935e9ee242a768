"""A model of three tables, batches for it, and the float64 reference with the same weights."""

from __future__ import annotations

from typing import Callable

import numpy as np
import pytest
import tensorflow as tf

from dlrm import embedding
from dlrm.data import Batch
from dlrm.distributed.collective import Collective
from dlrm.embedding import FusedTable
from dlrm.optim.dense_optimizers import DenseSGD
from dlrm.train.health import IDS_OUTSIDE
from dlrm.train.step import TrainingStep
from model import DLRM
from tests.support.reference_model import ReferenceDLRM

VOCAB_SIZES, WIDTH, NUM_DENSE, BATCH = (7, 1, 50), 4, 3, 16


def make_batches(count: int) -> list[Batch]:
    """Batches of random samples, the same at each call."""
    rng = np.random.default_rng(5)
    return [
        Batch(
            rng.random((BATCH, NUM_DENSE), np.float32),
            rng.integers(0, VOCAB_SIZES, (BATCH, len(VOCAB_SIZES)), np.int32),
            rng.integers(0, 2, BATCH).astype(np.float32),
            valid=BATCH,
            first=index * BATCH,
        )
        for index in range(count)
    ]


def small_step(lanes: int = 1) -> TrainingStep:
    """A step of one rank, built."""
    collective = Collective()
    step = TrainingStep(
        DLRM((8, WIDTH), (8, 1), seed=1, dtype="float32"),
        embedding.create("alltoall", FusedTable(VOCAB_SIZES, WIDTH, seed=1), collective),
        DenseSGD(),
        collective,
        num_dense=NUM_DENSE,
        local_batch=BATCH,
        lanes=lanes,
    )
    step.build()
    return step


def weights_of(step: TrainingStep) -> list[np.ndarray]:
    """Copies of all weights: tables, then kernel and bias of each layer."""
    rows = step.embedding.read_rows(0, step.embedding.local_rows)
    tables = np.split(np.array(rows), np.cumsum(VOCAB_SIZES)[:-1])
    return [*tables, *(variable.numpy() for variable in step.dense.values())]


def assert_refused(step: TrainingStep, train: Callable[..., object], fault: str) -> None:
    """A bad batch is refused by `train`, and no weight of the step is changed."""
    (batch,) = make_batches(1)
    if fault == IDS_OUTSIDE:
        batch.ids[3, 1] = 1  # of a table with one row
    else:
        batch.dense[3, 1] = np.nan
    before = weights_of(step)
    with pytest.raises(tf.errors.InvalidArgumentError, match=fault):
        train(batch.dense, batch.labels, step.route(batch.ids), batch.ids, 0.5)
    for value, expected in zip(weights_of(step), before):
        np.testing.assert_array_equal(value, expected)


def reference_of(step: TrainingStep) -> ReferenceDLRM:
    """The reference with the step's weights."""
    tables, dense = weights_of(step)[: len(VOCAB_SIZES)], weights_of(step)[len(VOCAB_SIZES) :]
    layers = list(zip(dense[::2], dense[1::2]))
    return ReferenceDLRM(tables, layers[:2], layers[2:])


def weights_of_reference(reference: ReferenceDLRM) -> list[np.ndarray]:
    """The reference's weights in the order of `weights_of`."""
    return [
        *reference.tables,
        *(value for layer in reference.bottom + reference.top for value in layer),
    ]
