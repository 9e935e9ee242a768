"""Training on a stream: which requests a step takes, what it does to the weights, what is measured.

On several ranks: tests/multi_rank/test_dlrm_v3.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics

from dlrm import embedding
from dlrm.distributed.collective import Collective
from dlrm.optim.adaptive_dense import DenseAdam
from dlrm.optim.adaptive_rows import RowWiseAdagrad
from dlrm_v3 import hstu_op
from dlrm_v3.config import POSITIVE_RATING, PRESETS
from dlrm_v3.data.stream import RequestStream, open_stream
from dlrm_v3.model.hstu import build_model
from dlrm_v3.model.inputs import Vectors
from dlrm_v3.quality import ranking_quality
from dlrm_v3.train.evaluation import LENGTH, figures, quality, tally, true_logits
from dlrm_v3.train.memory import check_memory
from dlrm_v3.train.plan import Share, StreamPlan, dropout_key
from dlrm_v3.train.prepare import Prepared, reader
from dlrm_v3.train.settings import max_length, parser, settings_of
from dlrm_v3.train.step import TABLES, HstuStep
from tests.support import hstu_batches
from tests.support.processes import ROOT
from tests.support.tiny_stream import write_stream

MODEL = replace(
    PRESETS["tiny"].model,
    width=8,
    heads=2,
    attention_dim=4,
    value_dim=4,
    hidden=8,
    max_history=20,
    input_dropout=0.2,
    output_dropout=0.1,
    table_range=1.0,
    tasks=("rating",),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def stream(folder: Path) -> RequestStream:
    return open_stream(folder)


# Which requests a step takes


def plan_of(stream: RequestStream, batch: int, rank: int = 0, size: int = 1, seed: int = 3) -> Any:
    return StreamPlan(stream, batch, seed, rank, size, first=0, last=3)


@pytest.mark.parametrize(("batch", "size"), [(7, 1), (16, 3), (1, 2), (500, 3)])
def test_each_request_is_trained_on_once_in_order_of_time(
    stream: RequestStream, batch: int, size: int
) -> None:
    ranks = [list(plan_of(stream, batch, rank, size).training(0)) for rank in range(size)]
    assert len({len(shares) for shares in ranks}) == 1
    assert len(ranks[0]) == plan_of(stream, batch).steps
    found: dict[int, list[int]] = {}
    for shares in zip(*ranks):
        assert len({(s.timestamp, s.number, s.part) for s in shares}) == 1
        sizes = [len(share.users) for share in shares]
        assert sum(sizes) <= batch
        assert max(sizes) - min(sizes) <= 1
        found.setdefault(shares[0].timestamp, []).extend(np.concatenate([s.users for s in shares]))
    assert list(found) == [0, 1, 2, 3]
    for timestamp, users in found.items():
        np.testing.assert_array_equal(np.sort(users), stream.users(timestamp, "train"))


def test_the_order_depends_on_seed_and_timestamp_alone(stream: RequestStream) -> None:
    def order(batch: int, seed: int, timestamp: int) -> list[int]:
        shares = plan_of(stream, batch, seed=seed).shares(timestamp, "train")
        return [int(user) for share in shares for user in share.users]

    assert order(7, 3, 1) == order(50, 3, 1) != sorted(order(7, 3, 1))
    assert order(7, 3, 1) != order(7, 4, 1)
    both = set(order(7, 3, 1)) & set(order(7, 3, 2))
    first, second = ([u for u in order(7, 3, t) if u in both] for t in (1, 2))
    assert first != second


def test_a_training_goes_on_at_any_step(stream: RequestStream) -> None:
    plan = plan_of(stream, 16)
    whole = list(plan.training(0))
    timestamps = [share.timestamp for share in whole]
    for step in range(plan.steps):
        position = plan.position(step)
        assert (position.step, position.epoch) == (step, timestamps[step])
        assert position.next_sample == 16 * whole[step].number
        rest = list(plan.training(step))
        assert [s.number for s in rest] == [s.number for s in whole[step:]]
        np.testing.assert_array_equal(rest[0].users, whole[step].users)
    assert plan.position(plan.steps) == (type(position))(plan.steps, 4, 0)
    assert list(plan.training(plan.steps)) == []


def test_the_evaluation_is_of_the_next_timestamp(stream: RequestStream) -> None:
    plan = plan_of(stream, 16)
    assert {(s.timestamp, s.part) for s in plan.evaluation(2)} == {(2, "train")}
    last = stream.config.train_timestamps
    assert {(s.timestamp, s.part) for s in plan.evaluation(last)} == {(last, "eval")}
    assert len(list(plan.evaluation(2, most=3))) == 3


def test_a_rank_without_requests_gets_one_that_asks_for_nothing(stream: RequestStream) -> None:
    shares = plan_of(stream, 1, rank=0, size=2).shares(0, "train")
    batch = next(iter(reader(stream, 20)(shares)))
    assert len(batch.share.users) == len(batch.ratings) == len(batch.inputs.target_tokens) == 0
    assert len(batch.inputs.items) == len(batch.inputs.users) == 1


def test_dropout_differs_from_step_to_step_and_seed_to_seed() -> None:
    keys = {dropout_key(seed, step) for seed in range(20) for step in range(200)}
    assert len(keys) == 4000
    assert all(-(2**63) <= key < 2**63 for key in keys)


# A step


def first_batch(stream: RequestStream, batch: int) -> Prepared:
    return next(iter(reader(stream, MODEL.max_history)(plan_of(stream, batch).training(0))))


def made(
    stream: RequestStream,
    *,
    batch: int,
    loss_scale: float = 1.0,
    fused: bool = False,
    **change: Any,
) -> tuple[HstuStep, Any]:
    """A step with epsilons that count, so that the scale of gradients shows in the weights."""
    config, collective = replace(MODEL, **change), Collective()
    sizes = (stream.config.items, stream.config.categories, stream.config.users)
    table = embedding.FusedTable(sizes, config.width, 5, initial_range=0.5)
    tables = embedding.create(
        "alltoall", table, collective, optimizer=RowWiseAdagrad(1e-3), table_groups=TABLES
    )
    length = max_length(config, stream.config)
    model = build_model(config, max_length=length, seed=1, dtype="float32", fused=fused, xla=False)
    step = HstuStep(
        model,
        tables,
        DenseAdam((0.9, 0.99), epsilon=1e-3),
        collective,
        config,
        nominal_candidates=batch * stream.config.candidates,
        loss_scale=loss_scale,
    )
    return step, model


@pytest.mark.parametrize(
    ("batch", "nominal", "loss_scale"), [(12, 12, 1.0), (12, 64, 1.0), (12, 12, 1024.0)]
)
def test_a_step_follows_the_gradient_of_the_mean_loss(
    stream: RequestStream, batch: int, nominal: int, loss_scale: float
) -> None:
    """Of all candidates, in a smaller last batch too; by formulas of the optimizers in NumPy."""
    found = first_batch(stream, batch)
    step, model = made(stream, batch=nominal, loss_scale=loss_scale)
    rows = step.embedding.read_rows(0, step.embedding.local_rows)
    before = {name: variable.numpy() for name, variable in step.dense.items()}
    key, rate, table_rate = dropout_key(0, 0), 0.01, 0.05
    labels = (found.ratings >= POSITIVE_RATING).astype(np.float32)

    table = tf.constant(rows[:, : MODEL.width])
    offsets = step.embedding.table.offsets
    keys = [
        np.asarray(found.inputs.items) + offsets[0],
        np.arange(stream.config.categories) + offsets[1],
        np.asarray(found.inputs.users) + offsets[2],
    ]
    weights = hstu_batches.weights(model)
    with tf.GradientTape() as tape:
        tape.watch(table)
        vectors = Vectors(*(tf.gather(table, part) for part in keys))
        logits = model(found.inputs, vectors, training=True, dropout_key=tf.constant(key))[:, 0]
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
        loss = MODEL.task_weight * tf.reduce_mean(losses)
    of_table, *of_weights = tape.gradient(loss, [table, *weights.values()])
    of_table = tf.convert_to_tensor(of_table).numpy().astype(np.float64)

    health, _ = step.train(
        found.inputs,
        found.ratings,
        step.route(found.inputs),
        found.inputs,
        dense_lr=rate,
        table_lr=table_rate,
        dropout_key=key,
    )
    np.testing.assert_allclose(float(health.loss), float(loss), rtol=1e-6)
    sums = np.mean(of_table**2, axis=1, keepdims=True)
    expected = rows[:, :-1] - table_rate * of_table / (np.sqrt(sums) + 1e-3)
    after = step.embedding.read_rows(0, step.embedding.local_rows)
    np.testing.assert_allclose(after[:, :-1], expected, atol=2e-6)
    np.testing.assert_allclose(after[:, -1:], sums, rtol=1e-3, atol=1e-12)
    assert np.abs(after[:, :-1] - rows[:, :-1]).max() > 1e-3
    for (name, value), gradient in zip(weights.items(), of_weights):
        g = tf.convert_to_tensor(gradient).numpy().astype(np.float64)
        # The first step of Adam: both corrected means are the gradient's own.
        wanted = before[name] - rate * g / (np.abs(g) + 1e-3)
        np.testing.assert_allclose(value.numpy(), wanted, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("fused", [False, True])
def test_a_rank_that_has_nothing_to_train_on_adds_nothing(
    stream: RequestStream, fused: bool
) -> None:
    if fused and not hstu_op.is_built():
        pytest.skip("make hstu_op builds the fused ops")
    (found,) = reader(stream, 20)(iter([Share(0, "train", 0, np.empty(0, np.int32))]))
    step, _ = made(stream, batch=12, fused=fused)
    rows = step.embedding.read_rows(0, step.embedding.local_rows)
    before = {name: variable.numpy() for name, variable in step.dense.items()}
    routes = step.route(found.inputs)
    rates: dict[str, Any] = {"dense_lr": 0.1, "table_lr": 0.1, "dropout_key": 1}
    health, _ = step.train(found.inputs, found.ratings, routes, found.inputs, **rates)
    assert float(health.loss) == 0
    np.testing.assert_array_equal(step.embedding.read_rows(0, step.embedding.local_rows), rows)
    for name, variable in step.dense.items():
        if name != "adam.steps":
            np.testing.assert_array_equal(variable.numpy(), before[name], err_msg=name)
    assert step.score(found.inputs)[0].shape == (0, 1)


def test_a_value_that_is_not_finite_changes_nothing(stream: RequestStream) -> None:
    found = first_batch(stream, 12)
    step, _ = made(stream, batch=12)
    step.dense["user_bias"].assign(np.full(MODEL.width, np.nan, np.float32))
    rows = step.embedding.read_rows(0, step.embedding.local_rows)
    before = {name: variable.numpy() for name, variable in step.dense.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
        step.train(
            found.inputs,
            found.ratings,
            step.route(found.inputs),
            found.inputs,
            dense_lr=0.1,
            table_lr=0.1,
            dropout_key=1,
        )
    np.testing.assert_array_equal(step.embedding.read_rows(0, step.embedding.local_rows), rows)
    for name, variable in step.dense.items():
        np.testing.assert_array_equal(variable.numpy(), before[name], err_msg=name)


def test_memory_is_counted_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published model: 1e9 items, 128 categories and 1e7 users of 512 values, one of state."""
    stream, model, _ = PRESETS["streaming-100b"]
    table = embedding.FusedTable((stream.items, stream.categories, model.user_rows), 512, 0)
    layout = embedding.RowLayout(table, RowWiseAdagrad().state_columns(512))
    sizes = {"local_batch": 64, "max_length": max_length(model, stream), "value_bytes": 4}
    monkeypatch.setattr("dlrm.distributed.devices.free_memory", lambda _: None)
    need = check_memory("alltoall", layout, model, 0, Collective(), **sizes)
    assert f"{1_010_000_128 * 513 * 4 / 2**30:,.2f} GiB of 1,010,000,128 rows" in need
    monkeypatch.setattr("dlrm.distributed.devices.free_memory", lambda _: 300 << 30)
    with pytest.raises(ValueError, match="expected .* free .* a smaller --max_history") as caught:
        check_memory("alltoall", layout, model, 0, Collective(), **sizes)
    assert "\n" not in str(caught.value)


# What is measured


def scored(seed: int, requests: int = 300) -> tuple[Any, Any, Any]:
    """Logits with ties, labels that they partly tell, and candidates of requests, some none."""
    rng = np.random.default_rng(seed)
    candidates = rng.integers(0, 9, requests).astype(np.int32)
    logits = rng.standard_normal(candidates.sum()).astype(np.float32) * 3
    logits[::7] = 0.5
    labels = (rng.random(len(logits)) < 1 / (1 + np.exp(-logits / 2))).astype(np.float32)
    return logits, labels, candidates


def test_the_figures_are_those_of_scikit_learn() -> None:
    logits, labels, candidates = scored(1)
    found = quality(tally(logits, labels, candidates))
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    log_loss, rate = metrics.log_loss(labels, p), labels.mean()
    entropy = metrics.log_loss([1, 0], [rate, rate], sample_weight=[rate, 1 - rate])
    ends = np.cumsum(candidates)
    aucs = [
        metrics.roc_auc_score(labels[end - n : end], p[end - n : end])
        for n, end in zip(candidates, ends)
        if n and 0 < labels[end - n : end].sum() < n
    ]
    assert found.candidates == len(logits)
    assert found.requests == np.count_nonzero(candidates)
    assert found.log_loss == pytest.approx(log_loss, rel=1e-6)
    assert found.normalised_entropy == pytest.approx(log_loss / entropy, rel=1e-6)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, p >= 0.5), rel=1e-12)
    assert found.auc == pytest.approx(metrics.roc_auc_score(labels, p), abs=1e-4)
    assert found.gauc == pytest.approx(np.mean(aucs), rel=1e-12)


def test_they_are_those_of_the_benchmark() -> None:
    """Which has all predictions at once, where the training has sums of them."""
    logits, labels, candidates = scored(2)
    p = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    exact = ranking_quality(p, labels, candidates)
    np.testing.assert_allclose(quality(tally(logits, labels, candidates)), exact, rtol=1e-4)


def test_parts_add_up_to_the_whole() -> None:
    logits, labels, candidates = scored(3)
    cut = 120
    place = int(candidates[:cut].sum())
    parts = tally(logits[:place], labels[:place], candidates[:cut])
    parts += tally(logits[place:], labels[place:], candidates[cut:])
    np.testing.assert_allclose(parts, tally(logits, labels, candidates), rtol=1e-12)


def test_a_score_that_is_not_finite_leaves_no_figure() -> None:
    logits, labels, candidates = scored(4)
    logits[5] = np.nan
    assert np.isnan(quality(tally(logits, labels, candidates))[:5]).all()
    assert np.isnan(quality(np.zeros(LENGTH))[:5]).all()


def test_true_probabilities_of_0_and_1_are_the_best_of_all() -> None:
    labels = np.array([0, 1, 1, 0], np.float32)
    found = quality(tally(true_logits(labels), labels, np.array([4])))
    assert found.normalised_entropy == pytest.approx(0, abs=1e-12)
    assert (found.accuracy, found.auc, found.gauc) == (1, 1, 1)
    assert np.isnan(figures(np.zeros((2, LENGTH))).best.auc)


# Settings


def settings(stream: RequestStream, *flags: str) -> Any:
    return settings_of(parser().parse_args(["--data_dir=x", *flags]), stream.config, "tiny")


def test_flags_change_the_preset(stream: RequestStream) -> None:
    found = settings(stream, "--layers=3", "--dense_betas=0.5,0.75", "--group_norm", "--amp")
    assert found.model == replace(
        PRESETS["tiny"].model, layers=3, group_norm=True, user_rows=stream.config.users
    )
    assert found.learning == replace(PRESETS["tiny"].learning, dense_betas=(0.5, 0.75))
    assert found.compute_dtype == "bfloat16"
    flat = found.flat()
    assert flat["max_length"] == 1 + 256 + stream.config.candidates
    assert flat["last_timestamp"] == stream.config.train_timestamps - 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--layers=0", "expected --layers of above 0, found 0"),
        ("--layers=two", "argument --layers: invalid int value: 'two'"),
        ("--dense_betas=0.9,x", "argument --dense_betas: invalid float,float value: '0.9,x'"),
        (
            "--dense_betas=0.9",
            "expected --dense_betas of two numbers from 0 on, below 1, found 0.9",
        ),
        ("--dense_betas=0.9,1", "found 0.9,1.0"),
        ("--position_buckets=1", "expected --position_buckets of 2 or more"),
        ("--xla --fused", "expected one of --xla and --fused"),
        ("--user_rows=5", "--user_rows: expected at least the 96 users of the data, found 5"),
        ("--first_timestamp=4", "expected --first_timestamp of one of 0 to 3, found 4"),
        ("--last_timestamp=-1", "expected --last_timestamp of one of 0 to 3, found -1"),
        ("--early_stop=0", "expected --early_stop of 1 or more, or -1 for none, found 0"),
        ("--tasks=stars", "expected --tasks with rating"),
        ("--mode=test", "--mode=test: no checkpoint named"),
        ("--mode=test --resume=x --xla", "--mode=test: expected no --xla"),
        ("--dense_lr=-1", "expected --dense_lr of above 0, found -1.0"),
        ("--input_dropout=1", "expected --input_dropout of 0 or more, below 1, found 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(stream: RequestStream, flag: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        settings(stream, *flag.split())
    assert "\n" not in str(caught.value)


def test_help_comes_at_once_and_names_every_field() -> None:
    command = [sys.executable, "-m", "dlrm_v3.train", "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for flag in ("--max_history", "--table_lr", "--checkpoint_timestamps", "--no-fused"):
        assert flag in ended.stdout
