"""A checkpoint of the day before in wider tables: every row, its state, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from dlrm import embedding
from dlrm.checkpoint import directory
from dlrm.checkpoint import state as checkpoint_state
from dlrm.checkpoint.manifest import ModelShape, Position, tables_file
from dlrm.checkpoint.resume import Resumed, resume
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.config import Config
from dlrm.distributed.collective import Collective
from dlrm.distributed.sharding import moved_keys
from dlrm.embedding import FusedTable
from dlrm.embedding.sharded import ShardedEmbedding
from dlrm.optim.row_optimizers import RowOptimizer
from dlrm.train.optimizers import row_optimizer
from tests.support.thread_ranks import on_ranks

SEED, WIDTH = 23, 4
OLD, NEW = (5, 1, 40, 0, 7), (5, 3, 61, 2, 8)
OPTIMIZERS = ("sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl")


def config(**settings: Any) -> Config:
    return Config.of(use_synthetic_dataset=True, **settings)


def record(vocab_sizes: tuple[int, ...], day: str, **shape: Any) -> RunRecord:
    model = ModelShape(3, vocab_sizes, WIDTH, (8, WIDTH), (4, 1))
    model = dataclasses.replace(model, **shape)
    return RunRecord(model, {"lr": 0.5}, {"training": day, "test": "the same"})


def fresh(vocab_sizes: tuple[int, ...], collective: Collective, optimizer: RowOptimizer) -> State:
    """Tables as a run begins with them, and one dense weight with its state."""
    table = FusedTable(vocab_sizes, WIDTH, SEED)
    tables = embedding.create("alltoall", table, collective, optimizer=optimizer)
    dense = {name: tf.Variable(tf.zeros(3)) for name in ("top_bias_0", "adam.mean.top_bias_0")}
    return State(dense, tables)


@pytest.fixture(scope="module", autouse=True)
def loaded_operations() -> None:
    """Loads the project's operations before ranks that are threads do so at once."""
    fresh((1,), Collective(), row_optimizer(config().optimizer))


def all_rows(state: State) -> np.ndarray:
    """This rank's rows and their state."""
    assert isinstance(state.tables, ShardedEmbedding)
    return state.tables.read_rows(0, state.tables.local_rows)


def by_table(parts: list[np.ndarray], vocab_sizes: tuple[int, ...]) -> list[np.ndarray]:
    """The rows of each table, from those of each rank; row r of rank k is key r * ranks + k."""
    fused = np.empty((sum(vocab_sizes), parts[0].shape[1]), np.float32)
    for rank, rows in enumerate(parts):
        fused[rank :: len(parts)] = rows
    return np.split(fused, np.cumsum(vocab_sizes)[:-1])


def files_of(checkpoint: Path, ranks: int) -> list[np.ndarray]:
    """Rows and state in a checkpoint's files, read by the format's own library."""
    found = []
    for rank in range(ranks):
        tensors = load_file(checkpoint / tables_file(rank, ranks))
        others = [tensors[name] for name in tensors if name != "rows"]
        found.append(np.concatenate([tensors["rows"], *others], axis=1))
    return found


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [*((name, 2, 3) for name in OPTIMIZERS), ("adam", 2, 1), ("adam", 1, 2), ("adam", 3, 3)],
)
def test_rows_and_state_move_to_their_new_places(
    name: str, before: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_state, "PIECE_BYTES", 500)  # several pieces of a small table
    old_folder, new_folder = tmp_path / "old", tmp_path / "new"
    sums = {} if name in ("sgd", "momentum", "adam") else {"initial_accumulator": 0.25}
    optimizer = row_optimizer(config(optimizer=name, **sums).optimizer)

    def first_day(collective: Collective) -> None:
        state = fresh(OLD, collective, optimizer)
        generator = np.random.default_rng([SEED, collective.rank])
        shape = all_rows(state).shape
        state.tables.write_rows(np.arange(shape[0]), generator.random(shape, np.float32))
        for number, variable in enumerate(state.dense.values()):
            variable.assign([number, 1, 2])
        run = record(OLD, "Monday")
        Checkpoints(old_folder, collective, run, keep=1).save(state, Position(7, 0, 56))

    def second_day(collective: Collective) -> tuple[np.ndarray, np.ndarray, list[str]]:
        state, lines = fresh(NEW, collective, optimizer), list[str]()
        began = all_rows(state)
        run = record(NEW, "Tuesday")
        checkpoints = Checkpoints(new_folder, collective, run, keep=1)
        resumed = resume(
            "auto", new_folder, run, state, collective, append_day=old_folder,
            on_message=lines.append,
        )  # fmt: skip
        assert resumed == Resumed(old_folder / "step-0000000007", Position(0, 0, 0))
        assert [value.numpy().tolist() for value in state.dense.values()] == [[0, 1, 2], [1, 1, 2]]
        checkpoints.save(state, Position(3, 0, 24))
        return began, all_rows(state), lines

    def third_start(collective: Collective) -> np.ndarray:
        """Goes on with the second day, whose tables must not be widened again."""
        state, run = fresh(NEW, collective, optimizer), record(NEW, "Tuesday")
        resumed = resume("auto", new_folder, run, state, collective, append_day=old_folder)
        assert resumed == Resumed(new_folder / "step-0000000003", Position(3, 0, 24))
        return all_rows(state)

    on_ranks(before, first_day)
    found = on_ranks(after, second_day)
    old = by_table(files_of(old_folder / "step-0000000007", before), OLD)
    began, ended = by_table([a for a, _, _ in found], NEW), by_table([b for _, b, _ in found], NEW)
    for table, rows in enumerate(OLD):
        np.testing.assert_array_equal(ended[table][:rows], old[table], err_msg=f"table {table}")
        np.testing.assert_array_equal(ended[table][rows:], began[table][rows:])
    new_rows = np.concatenate([table[rows:] for table, rows in zip(ended, OLD)])
    assert (new_rows[:, :WIDTH] != 0).all()
    if sums:
        assert (new_rows[:, WIDTH:] == 0.25).any(axis=1).all()
    assert "53 rows as trained, 26 new ones" in found[0][2][-1]
    written = by_table(files_of(new_folder / "step-0000000003", after), NEW)
    again = by_table(on_ranks(before, third_start), NEW)
    for table in range(len(NEW)):
        np.testing.assert_array_equal(written[table], ended[table])
        np.testing.assert_array_equal(again[table], ended[table])


def test_new_rows_are_those_of_a_fresh_table_on_any_ranks() -> None:
    """The rule: key, seed and size of the table decide, as if no day had been before."""
    sgd = row_optimizer(config().optimizer)

    def rows(collective: Collective) -> np.ndarray:
        state = fresh(NEW, collective, sgd)
        return all_rows(state)

    alone = by_table(on_ranks(1, rows), NEW)
    for ranks in (2, 3):
        for one, other in zip(by_table(on_ranks(ranks, rows), NEW), alone):
            np.testing.assert_array_equal(one, other)
    for size, table in zip(NEW, alone):  # uniform within 1 / sqrt(rows)
        assert np.abs(table).max() <= 1 / np.sqrt(size)


def test_keys_move_with_their_tables() -> None:
    # Tables of 2, 0 and 3 rows become 4, 1 and 3: ids 0, 1 | 0, 1, 2.
    keys = np.arange(5)
    np.testing.assert_array_equal(moved_keys(keys, (2, 0, 3), (4, 1, 3)), [0, 1, 5, 6, 7])
    np.testing.assert_array_equal(moved_keys(keys, (2, 0, 3), (2, 0, 3)), keys)


@pytest.mark.parametrize(
    ("run", "append", "message"),
    [
        (record((5, 3, 39, 2, 8), "Tuesday"), True, "rows of table 2: checkpoint 40, run 39; give"),
        (record((*NEW, 4), "Tuesday"), True, "tables: checkpoint 5, run 6; give the run"),
        (record(NEW, "Tuesday", embedding_dim=8), True, "embedding_dim: checkpoint 4, run 8"),
        (record(NEW, "Tuesday", top_mlp=(8, 1)), True, "top_mlp: checkpoint 4-1, run 8-1"),
        (record(NEW, "Monday"), True, "trained on the data of this day already; set --append_day"),
        (record(NEW, "Tuesday"), False, "to go on with wider tables there, set --append_day="),
        (record((5, 3, 39, 2, 8), "Tuesday"), False, "data, or set another --checkpoint_dir$"),
    ],
)  # fmt: skip
def test_what_is_refused(run: RunRecord, append: bool, message: str, tmp_path: Path) -> None:
    sgd, collective = row_optimizer(config().optimizer), Collective()
    checkpoints = Checkpoints(tmp_path, collective, record(OLD, "Monday"), keep=1)
    checkpoints.save(fresh(OLD, collective, sgd), Position(7, 0, 56))
    state = fresh(run.model.vocab_sizes, collective, sgd)
    before = all_rows(state)
    own, day = (None, tmp_path) if append else (tmp_path, None)
    with pytest.raises(ValueError, match=message) as caught:
        resume("auto", own, run, state, collective, append_day=day)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(all_rows(state), before)


def test_a_damaged_day_is_passed_over_and_a_missing_one_refused(tmp_path: Path) -> None:
    sgd, collective = row_optimizer(config().optimizer), Collective()
    checkpoints = Checkpoints(tmp_path / "old", collective, record(OLD, "Monday"), keep=2)
    for step in (4, 7):
        checkpoints.save(fresh(OLD, collective, sgd), Position(step, 0, 8 * step))
    newest = directory.finished(tmp_path / "old")[-1]
    damaged = newest / tables_file(0, 1)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    run = record(NEW, "Tuesday")
    state = fresh(NEW, collective, sgd)
    resumed = resume("auto", None, run, state, collective, append_day=tmp_path / "old")
    assert resumed
    assert resumed.path.name == "step-0000000004"
    with pytest.raises(ValueError, match="expected a checkpoint, found no manifest.json"):
        resume("auto", None, run, state, collective, append_day=tmp_path / "absent")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"append_day": "a", "resume": "b"}, "expected --append_day with --resume=auto, found"),
        ({"append_day": "a", "resume": "none"}, "expected --append_day with --resume=auto, found"),
        ({"append_day": "a", "checkpoint_dir": "a/"}, "another folder than --checkpoint_dir"),
        ({"append_day": "a/step-0000000001", "checkpoint_dir": "a"}, "another folder than --chec"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_a_day_can_be_evaluated_with_the_model_of_the_one_before() -> None:
    assert config(mode="test", append_day="a").checkpoint.append_day == "a"
    with pytest.raises(ValueError, match="no checkpoint named"):
        config(mode="inference_benchmark", append_day="a")
