"""DCNv2 on bags of ids: scores and a step of training against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dlrm import embedding
from dlrm.distributed.collective import Collective
from dlrm.embedding import FusedTable
from dlrm.formats.bags import BagLayout, Bags
from dlrm.layers.interaction_shape import InteractionShape
from dlrm.layers.interactions import concat_interaction
from dlrm.optim.dense_optimizers import DenseSGD
from dlrm.train.step import TrainingStep
from model import DLRM
from tests.support.bag_data import TableBags, batch_of, random_bags
from tests.support.reference_interactions import ReferenceInteraction
from tests.support.reference_model import ReferenceDLRM

SEED, SIZES, WIDTH, NUM_DENSE, BATCH, RATE = 313, (9, 4, 30), 4, 3, 24, 0.5
OFFSETS = np.cumsum((0, *SIZES[:-1]))


class Samples:
    """A batch: weighted means in table 0, one id in table 1, weighted sums in table 2."""

    def __init__(self) -> None:
        print("seed", SEED)
        rng = np.random.default_rng(SEED)
        mean = random_bags(rng, 0, BATCH, SIZES[0], pooling="mean", weights=True)
        total = random_bags(rng, 2, BATCH, SIZES[2], longest=7, weights=True)
        single = rng.integers(0, SIZES[1], BATCH).astype(np.int32)
        self.columns: list[TableBags | np.ndarray] = [mean, single, total]
        self.bags = Bags(*map(tf.constant, batch_of(self.columns, 0, BATCH)))
        self.dense = rng.normal(size=(BATCH, NUM_DENSE)).astype(np.float32)
        self.labels = rng.integers(0, 2, BATCH).astype(np.float32)

    def factors(self) -> np.ndarray:
        """What each row counts in each vector, float64 [B, T, K]."""
        found = np.zeros((BATCH, len(SIZES), sum(SIZES)))
        for table, column in enumerate(self.columns):
            for sample in range(BATCH):
                if isinstance(column, np.ndarray):
                    found[sample, table, OFFSETS[table] + column[sample]] += 1
                    continue
                assert column.weights is not None
                ids = column.bags[sample]
                share = 1 / len(ids) if column.pooling == "mean" and len(ids) else 1.0
                for number, weight in zip(ids, column.weights[sample]):
                    found[sample, table, OFFSETS[table] + number] += share * weight
        return found


def built() -> TrainingStep:
    collective = Collective()
    layout = BagLayout(("mean", "sum", "sum"), (2.5, 1.0, 3.5), weights=True)
    table = FusedTable(SIZES, WIDTH, seed=1)
    shape = InteractionShape("dcnv2", cross_layers=2, cross_rank=5)
    step = TrainingStep(
        DLRM(
            (8, WIDTH),
            (8, 1),
            seed=1,
            dtype="float32",
            interact=concat_interaction,
            shape=shape,
        ),
        embedding.create("alltoall", table, collective, bag_layout=layout),
        DenseSGD(),
        collective,
        num_dense=NUM_DENSE,
        local_batch=BATCH,
    )
    step.build()
    return step


def reference_of(step: TrainingStep, vectors: np.ndarray) -> ReferenceDLRM:
    """The step's dense part; the vectors [B, T, W] take the place of tables with a row a sample."""
    weights = {name: variable.numpy() for name, variable in step.dense.items()}
    layers = {
        mlp: [(weights[f"{mlp}_kernel_{i}"], weights[f"{mlp}_bias_{i}"]) for i in range(2)]
        for mlp in ("bottom", "top")
    }
    cross = [weights[f"cross_{part}_{i}"] for i in range(2) for part in ("v", "w", "bias")]
    interaction = ReferenceInteraction("dcnv2", cross)
    tables = list(vectors.swapaxes(0, 1))
    return ReferenceDLRM(tables, layers["bottom"], layers["top"], interaction)


def test_a_step_equals_the_reference() -> None:
    step, samples = built(), Samples()
    factors = samples.factors()
    assert (factors.sum(axis=2) == 0).any(), "empty bags"
    rows = np.array(step.embedding.read_rows(0, step.embedding.local_rows), np.float64)
    reference = reference_of(step, factors @ rows)
    every = np.repeat(np.arange(BATCH)[:, None], len(SIZES), axis=1)
    expected = reference.logits(samples.dense, every)
    logits, _ = step.score(samples.dense, samples.bags)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)

    names = [f"bottom_{part}_{i}" for i in range(2) for part in ("kernel", "bias")]
    names += [f"cross_{part}_{i}" for i in range(2) for part in ("v", "w", "bias")]
    names += [f"top_{part}_{i}" for i in range(2) for part in ("kernel", "bias")]
    before = [np.array(weight, np.float64) for weight in reference.layers()]
    loss, of_vectors, of_layers = reference.gradients(samples.dense, every, samples.labels)
    routes = step.route(samples.bags)
    health, _ = step.train(samples.dense, samples.labels, routes, samples.bags, RATE)
    assert float(health.loss) == pytest.approx(loss, rel=1e-5)
    for name, weight, gradient in zip(names, before, of_layers):
        found = step.dense[name].numpy()
        np.testing.assert_allclose(found, weight - RATE * gradient, atol=2e-6, err_msg=name)
    gradient = np.einsum("btk,tbw->kw", factors, np.stack(of_vectors))
    found = step.embedding.read_rows(0, step.embedding.local_rows)
    np.testing.assert_allclose(found, rows - RATE * gradient, atol=2e-6)
