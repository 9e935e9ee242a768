"""Row optimizers against float64 NumPy: sharded, checkpointed, and on another number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from dlrm.checkpoint import state as checkpoint_state
from dlrm.checkpoint.manifest import ModelShape, Position, read_manifest, tables_file
from dlrm.checkpoint.resume import resume
from dlrm.checkpoint.safetensors_file import TensorReader
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import MisfitError, RunRecord, State
from dlrm.distributed.collective import Collective
from dlrm.embedding import Embedding, FusedTable, create
from dlrm.optim.adaptive_rows import RowAdagrad, RowAdam, RowFtrl, RowWiseAdagrad
from dlrm.optim.row_optimizers import RowMomentum, RowOptimizer, RowSGD, RowWeightDecay
from tests.support import reference_optimizers
from tests.support.reference_optimizers import Rule
from tests.support.thread_ranks import on_ranks

TABLE = FusedTable((7, 1, 30), width=4, seed=5)
BATCH, STEPS, RATE, SCALE = 12, 6, 0.1, 0.25
RUN = RunRecord(ModelShape(1, TABLE.vocab_sizes, TABLE.width, (4,), (1,)), {}, {})


MOMENTUM, BETAS, L1, L2, DECAY = 0.8, (0.9, 0.99), 0.02, 0.03, 0.4
EPSILON, INITIAL = 0.05, 0.01  # they count, so that they show where they stand

OPTIMIZERS: dict[str, tuple[Callable[[], RowOptimizer], Rule]] = {
    "sgd": (RowSGD, reference_optimizers.sgd()),
    "momentum": (lambda: RowMomentum(MOMENTUM), reference_optimizers.momentum(MOMENTUM)),
    "adagrad": (
        lambda: RowAdagrad(EPSILON, INITIAL),
        reference_optimizers.adagrad(EPSILON, INITIAL),
    ),
    "rowwise_adagrad": (
        lambda: RowWiseAdagrad(EPSILON, INITIAL),
        reference_optimizers.rowwise_adagrad(EPSILON, INITIAL),
    ),
    "adam": (lambda: RowAdam(BETAS, EPSILON), reference_optimizers.adam(BETAS, EPSILON)),
    "ftrl": (
        lambda: RowFtrl(RATE * L1, RATE * L2, INITIAL),
        reference_optimizers.ftrl(RATE, L1, L2, INITIAL),
    ),
    "momentum with decay": (
        lambda: RowWeightDecay(RowMomentum(MOMENTUM), DECAY),
        reference_optimizers.decayed(reference_optimizers.momentum(MOMENTUM), DECAY),
    ),
}


def batch_of(step: int) -> tuple[np.ndarray, np.ndarray]:
    """The global batch of a step: ids and gradients of its vectors."""
    rng = np.random.default_rng(step)
    ids = (rng.random((BATCH, 3)) ** 2 * TABLE.vocab_sizes).astype(np.int32)  # low ids repeat
    return ids, rng.standard_normal((BATCH, 3, TABLE.width)).astype(np.float32)


def reference(name: str, steps: int) -> np.ndarray:
    """Stored rows of all keys in float64 after some steps, one row at a time."""
    optimizer, rule = OPTIMIZERS[name]
    columns = optimizer().state_columns(TABLE.width)
    rows = list(TABLE.initial(tf.range(TABLE.rows, dtype=tf.int64)).numpy().astype(np.float64))
    state = [[np.full(c.width, c.initial) for c in columns] for _ in rows]
    for step in range(steps):
        ids, gradients = batch_of(step)
        keys = ids + TABLE.offsets
        for key in np.unique(keys):
            total = SCALE * gradients[keys == key].astype(np.float64).sum(axis=0)
            rows[key], state[key] = rule.step(rows[key], state[key], total, RATE)
    return np.stack([np.concatenate([row, *parts]) for row, parts in zip(rows, state)])


def tables_of(optimizer: RowOptimizer, collective: Collective, **settings: Any) -> Embedding:
    return create("alltoall", TABLE, collective, optimizer=optimizer, table_groups=2, **settings)


def train(tables: Embedding, collective: Collective, steps: range) -> None:
    """This rank's part of some steps."""
    mine = slice(*(BATCH * r // collective.size for r in (collective.rank, collective.rank + 1)))
    for step in steps:
        ids, gradients = batch_of(step)
        lookup = tables.lookup(tables.route(tf.constant(ids[mine])))
        in_groups = tf.split(gradients[mine], [v.shape[1] for v in lookup.vectors], axis=1)
        tables.update(lookup, in_groups, tf.constant(RATE), SCALE)


def stored(tables: Embedding) -> np.ndarray:
    return tables.read_rows(0, tables.local_rows)


@pytest.mark.parametrize(("ranks", "compress"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_and_state_follow_the_reference(name: str, ranks: int, compress: bool) -> None:
    def work(collective: Collective) -> np.ndarray:
        tables = tables_of(OPTIMIZERS[name][0](), collective, compress=compress)
        train(tables, collective, range(STEPS))
        return stored(tables)

    expected = reference(name, STEPS)
    for rank, found in enumerate(on_ranks(ranks, work)):
        np.testing.assert_allclose(found, expected[rank::ranks], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "optimizer",
    [RowSGD(), RowMomentum(), RowAdagrad(), RowWiseAdagrad(), RowFtrl()],
    ids=lambda o: type(o).__name__,
)
def test_a_row_whose_gradients_are_zero_stays_as_it_is(optimizer: RowOptimizer) -> None:
    """Also one that was never changed, whose state may be 0."""
    tables = tables_of(optimizer, Collective())
    before = stored(tables)
    lookup = tables.lookup(tables.route(tf.constant([[3, 0, 7]])))
    tables.update(lookup, [tf.zeros_like(part) for part in lookup.vectors], tf.constant(RATE))
    np.testing.assert_allclose(stored(tables), before, rtol=2e-7)


@pytest.mark.parametrize("bad_ids", ["error", "zero"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_changes_the_rows_of_its_batch_alone(name: str, bad_ids: str) -> None:
    """With decay too; a row that stands for an id outside its table is none of them."""
    tables = tables_of(RowWeightDecay(OPTIMIZERS[name][0](), DECAY), Collective(), bad_ids=bad_ids)
    train(tables, Collective(), range(2))  # velocities, means and sums that could act
    before = stored(tables)
    ids = [[3, 0, 7], [3, 0, 30 if bad_ids == "zero" else 29]]  # where the row of 30 is that of 29
    lookup = tables.lookup(tables.route(tf.constant(ids)))
    tables.update(lookup, [tf.ones_like(part) for part in lookup.vectors], tf.constant(RATE))
    changed = (stored(tables) != before).any(axis=1)
    expected = {3, 7, 8 + 7} | (set() if bad_ids == "zero" else {8 + 29})
    assert set(np.flatnonzero(changed)) == expected


def test_the_first_steps_of_a_row_are_corrected_whenever_they_come() -> None:
    """Adam's first step is the learning rate, up to epsilon, in step 1 as in step 50."""
    tables = tables_of(RowAdam(), Collective())
    for step in range(50):
        key = 8 + (step == 49)  # id 0 of the third table, and at last its id 1
        before = stored(tables)[key]
        lookup = tables.lookup(tables.route(tf.constant([[0, 0, key - 8]])))
        tables.update(lookup, [tf.ones_like(part) for part in lookup.vectors], tf.constant(RATE))
        moved = (stored(tables)[key] - before)[: TABLE.width]
        if step in (0, 49):
            np.testing.assert_allclose(moved, -RATE, rtol=1e-5)
    assert stored(tables)[8, -1] == 49


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_vectors_are_the_rows_without_their_state(name: str) -> None:
    tables = tables_of(OPTIMIZERS[name][0](), Collective())
    ids, _ = batch_of(0)
    vectors = tf.concat(tables.lookup(tables.route(tf.constant(ids))).vectors, 1)
    assert vectors.shape == (BATCH, 3, TABLE.width)
    expected = stored(tables)[ids + TABLE.offsets, : TABLE.width]
    np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize(("wrote", "reads"), [(2, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("name", ["momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl"])
def test_training_goes_on_from_a_checkpoint(
    name: str, wrote: int, reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any number of ranks, as if nothing had happened."""
    monkeypatch.setattr(checkpoint_state, "PIECE_BYTES", 200)
    optimizer = OPTIMIZERS[name][0]

    def first_half(collective: Collective) -> None:
        tables = tables_of(optimizer(), collective)
        train(tables, collective, range(STEPS // 2))
        checkpoints = Checkpoints(tmp_path, collective, RUN, keep=1)
        checkpoints.save(State({}, tables), Position(STEPS // 2, 0, 0))

    def second_half(collective: Collective) -> np.ndarray:
        tables = tables_of(optimizer(), collective)
        assert resume("auto", tmp_path, RUN, State({}, tables), collective)
        train(tables, collective, range(STEPS // 2, STEPS))
        return stored(tables)

    on_ranks(wrote, first_half)

    def uninterrupted(collective: Collective) -> np.ndarray:
        tables = tables_of(optimizer(), collective)
        train(tables, collective, range(STEPS))
        return stored(tables)

    expected = reference(name, STEPS)
    whole = on_ranks(reads, uninterrupted)
    for rank, found in enumerate(on_ranks(reads, second_half)):
        np.testing.assert_allclose(found, expected[rank::reads], rtol=2e-5, atol=2e-6)
        if wrote == reads:
            np.testing.assert_array_equal(found, whole[rank])


def test_a_checkpoint_has_a_tensor_for_each_part_of_the_state(tmp_path: Path) -> None:
    tables = tables_of(RowAdam(), Collective())
    train(tables, Collective(), range(STEPS))
    Checkpoints(tmp_path, Collective(), RUN, keep=1).save(State({}, tables), Position(6, 0, 0))
    path = tmp_path / "step-0000000006"
    name = tables_file(0, 1)
    rows, width = TABLE.rows, TABLE.width
    widths = {"rows": width, "adam.mean": width, "adam.square": width, "adam.steps": 1}
    with TensorReader(path / name, read_manifest(path).files[name]) as reader:
        assert {part: shape for part, (_, shape) in reader.tensors.items()} == {
            part: (rows, columns) for part, columns in widths.items()
        }
        parts = np.concatenate([reader.read(part) for part in widths], axis=1)
    np.testing.assert_array_equal(parts, stored(tables))


@pytest.mark.parametrize(
    ("wrote", "reads", "text"),
    [
        ("sgd", "adagrad", "expected adagrad.sum, found nothing"),
        ("adagrad", "sgd", "expected nothing, found adagrad.sum"),
        ("adagrad", "ftrl", "expected ftrl.held, ftrl.sum, found adagrad.sum"),
    ],
)
def test_a_checkpoint_of_another_optimizer_is_refused(
    wrote: str, reads: str, text: str, tmp_path: Path
) -> None:
    tables = tables_of(OPTIMIZERS[wrote][0](), Collective())
    Checkpoints(tmp_path, Collective(), RUN, keep=1).save(State({}, tables), Position(1, 0, 0))
    tables = tables_of(OPTIMIZERS[reads][0](), Collective())
    train(tables, Collective(), range(1))
    before = stored(tables)
    for may_ignore in (False, None):  # a run of dlrm_v3 has no flag to ignore it
        with pytest.raises(MisfitError, match=text) as caught:
            resume(
                *("auto", tmp_path, RUN, State({}, tables), Collective()),
                ignore_optimizer_change=may_ignore,
            )
        assert "resume with the optimizer that wrote it" in str(caught.value)
        assert ("--ignore_optimizer_change" in str(caught.value)) == (may_ignore is False)
        assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(stored(tables), before)


@pytest.mark.parametrize(("wrote", "reads"), [(2, 2), (2, 3)])
def test_the_state_of_another_optimizer_begins_anew_if_asked_to(
    wrote: int, reads: int, tmp_path: Path
) -> None:
    """Of FTRL's, the sums are those of nobody else; rows are the checkpoint's in any case."""

    def write(collective: Collective) -> np.ndarray:
        tables = tables_of(RowAdagrad(), collective)
        train(tables, collective, range(STEPS))
        Checkpoints(tmp_path, collective, RUN, keep=1).save(State({}, tables), Position(6, 0, 0))
        return stored(tables)

    def read(collective: Collective) -> np.ndarray:
        tables = tables_of(RowFtrl(initial=0.5), collective)
        train(tables, collective, range(1))
        state = State({}, tables)
        assert resume("auto", tmp_path, RUN, state, collective, ignore_optimizer_change=True)
        return stored(tables)

    rows = np.empty((TABLE.rows, 2 * TABLE.width))
    for rank, found in enumerate(on_ranks(wrote, write)):
        rows[rank::wrote] = found
    for rank, found in enumerate(on_ranks(reads, read)):
        width = TABLE.width
        np.testing.assert_array_equal(found[:, :width], rows[rank::reads, :width])
        np.testing.assert_array_equal(found[:, width : 2 * width], 0.5)
        np.testing.assert_array_equal(found[:, 2 * width :], 0)
