"""Any number of ranks ends with the weights of a float64 NumPy training of the whole batch."""

from __future__ import annotations

import functools
import sys
from typing import Callable

import numpy as np
import pytest

from dlrm.config import OptimizerConfig
from tests.multi_rank.workers import parity
from tests.support import reference_optimizers as optimizers
from tests.support.processes import run
from tests.support.reference_interactions import ReferenceInteraction
from tests.support.reference_model import ReferenceDLRM
from tests.support.reference_population import Population

WORKER = "tests.multi_rank.workers.parity"
# Three do not divide the rows evenly, and 1 / 3 is not a binary fraction.
RANKS = (
    1,
    2,
    pytest.param(3, marks=pytest.mark.one_profile),
    pytest.param(4, marks=pytest.mark.slow),
)
# Of the way that the weights went, by the type of the arithmetic.
TOLERANCES = {None: 1e-5, "float16": 2e-3, "bfloat16": 0.15}


Weights = dict[int, tuple]  # by the index of the settings


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> Callable[[int], Weights]:
    """Trains on a number of ranks, once, and returns what came of it.

    For each settings index: dense weights at begin and end, tables at begin and end.
    """

    @functools.cache
    def trained(size):
        found = {}
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        launch = [] if size == 1 else ["horovodrun", "--gloo", "-np", str(size)]
        result = run([*launch, sys.executable, "-m", WORKER, str(folder)], time_limit=300)
        assert result.code == 0, result.output
        for index in range(len(parity.SETTINGS)):
            files = [np.load(folder / f"{index}-{rank}.npz") for rank in range(size)]
            dense = [files[0][f"arr_{i}"] for i in range(len(files[0].files) - 2)]
            for other in files[1:]:
                for i, value in enumerate(dense):
                    np.testing.assert_array_equal(value, other[f"arr_{i}"])
            half = len(dense) // 2
            tables = [
                interleaved([file[name] for file in files]) for name in ("begin_rows", "rows")
            ]
            found[index] = dense[:half], dense[half:], *tables
        return found

    return trained


def interleaved(shares):
    """The fused table from the ranks' shares: key k is row k // size of rank k % size."""
    total = sum(parity.VOCAB_SIZES)
    table = np.empty((total, shares[0].shape[1]), np.float32)
    for rank, share in enumerate(shares):
        owned = len(table[rank :: len(shares)])
        assert owned == len(share), "a rank holds exactly its share"
        table[rank :: len(shares)] = share
    return table


def by_table(fused):
    return np.split(fused, np.cumsum(parity.VOCAB_SIZES)[:-1])


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("index", range(len(parity.SETTINGS)))
def test_weights_equal_numpy_training(train, size, index):
    settings = parity.SETTINGS[index]
    begin, end, begin_rows, rows = train(size)[index]
    samples = parity.Samples(bad=settings.get("bad_ids") == "zero")
    tables = by_table(begin_rows)
    ids = samples.ids
    if settings.get("bad_ids") == "zero":
        # An id outside its table is a row of zeros that is never trained: give it one, and reset.
        tables = [np.vstack([table, np.zeros((1, table.shape[1]))]) for table in tables]
        ids = np.minimum(ids, parity.VOCAB_SIZES)
    dynamic = settings.get("embedding") == "dynamic"
    if dynamic:  # the shared row of each table comes last, and begins as the table's first one
        tables = [np.vstack([table, table[:1]]) for table in tables]
    reference = ReferenceDLRM(tables, *layers_of(begin, settings))
    config = parity.config_of(**settings)
    take, rows_of = step_of(reference, config.optimizer, size, keep_last=dynamic)
    populations = [
        Population(config.embedding.admit_after, config.embedding.evict_after) for _ in tables
    ]
    for step in range(parity.steps_of(settings)):
        part = slice(step * parity.GLOBAL_BATCH, (step + 1) * parity.GLOBAL_BATCH)
        batch = ids[part]
        if dynamic:
            batch = batch.copy()
            for number, population in enumerate(populations):
                owners, fresh = population.see(step + 1, batch[:, number])
                new = sorted(fresh)
                rows_of.begin_anew(number, new, by_table(begin_rows)[number][new])
                shared = ~np.isin(batch[:, number], list(owners))
                batch[shared, number] = parity.VOCAB_SIZES[number]
        take(samples.dense[part], batch, samples.labels[part])
        if settings.get("bad_ids") == "zero":
            for table in reference.tables:
                table[-1] = 0

    if dynamic:
        for table, first, population in zip(reference.tables, by_table(begin_rows), populations):
            population.forget(parity.STEPS)
            others = sorted(set(range(len(first))) - population.owners())
            table[others] = table[-1] if config.embedding.admit_after else first[others]
    expected = reference.layers()
    expected += [table[:rows] for table, rows in zip(reference.tables, parity.VOCAB_SIZES)]
    found = [*end, *by_table(rows)]
    start = [*begin, *by_table(begin_rows)]
    most = max(np.abs(value - want).max() for value, want in zip(found, expected))
    share = distance(found, expected) / distance(expected, start)
    print(f"ranks {size}, {settings}: max difference {most:.2e}, {share:.1e} of the way")
    dtype = settings.get("amp_dtype")
    assert share < TOLERANCES[dtype]
    assert dtype or most < 2e-6


def layers_of(weights, settings):
    """Both MLPs and the interaction of a run's dense weights; they begin with the bottom MLP's."""
    kind, cross = settings.get("interaction"), 3 * settings.get("cross_layers", 0)
    mlps = [*weights[:4], *weights[4 + cross :]]
    layers = list(zip(mlps[::2], mlps[1::2]))
    interaction = kind and ReferenceInteraction(kind, weights[4 : 4 + cross])
    return layers[:2], layers[2:], interaction


def step_of(
    reference: ReferenceDLRM, config: OptimizerConfig, size: int, *, keep_last: bool
) -> tuple[Callable[..., None], optimizers.Training]:
    """A function that takes a step of the reference as the settings say, and its tables.

    The row behind a table's ids takes part if `keep_last`; else it stands for ids outside of it.
    """
    ours = {
        "sgd": optimizers.sgd(),
        "momentum": optimizers.momentum(config.momentum),
        "adagrad": optimizers.adagrad(config.epsilon, 0.0),
        "rowwise_adagrad": optimizers.rowwise_adagrad(config.epsilon, 0.0),
        "adam": optimizers.adam((config.beta1, config.beta2), config.epsilon),
        "ftrl": optimizers.ftrl(config.lr, config.ftrl_l1, config.ftrl_l2, 0.1),
    }
    rules = ours[config.optimizer], ours[config.dense_optimizer]
    of_tables, of_layers = (optimizers.decayed(rule, config.weight_decay) for rule in rules)
    tables = optimizers.Training(reference.tables, of_tables, by_row=True)
    layers = optimizers.Training(reference.layers(), of_layers, by_row=False)

    def take(dense: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> None:
        _, tables_gradients, layers_gradients = reference.gradients(dense, ids, labels)
        if config.embedding_grad == "sum":
            tables_gradients = [size * gradient for gradient in tables_gradients]
        for gradient, rows in zip(tables_gradients, parity.VOCAB_SIZES):
            if not keep_last:
                gradient[rows:] = 0
        if config.clip_norm is not None:
            counted = [*tables_gradients, *layers_gradients]
            norm = np.sqrt(sum(np.sum(gradient**2) for gradient in counted))
            print(f"norm {norm:.4f}, at most {config.clip_norm}")
            for gradient in counted:
                gradient *= min(1.0, config.clip_norm / norm)
        tables.step(tables_gradients, config.lr)
        layers.step(layers_gradients, config.rate_of_dense)

    return take, tables


def distance(values, others):
    """Euclidean distance of two sets of weights."""
    return np.sqrt(sum(np.sum(np.square(a - b, dtype=np.float64)) for a, b in zip(values, others)))


@pytest.mark.parametrize("size", RANKS)
def test_first_weights_do_not_depend_on_the_number_of_ranks(train, size):
    everywhere = train(1)
    for index, (begin, _, begin_rows, _) in train(size).items():
        # Other interactions have weights of their own.
        own = "interaction" in parity.SETTINGS[index]
        expected, _, expected_rows, _ = everywhere[index if own else 0]
        for value, other in zip(begin, expected):
            np.testing.assert_array_equal(value, other, err_msg=f"setting {index}")
        np.testing.assert_array_equal(begin_rows, expected_rows)
