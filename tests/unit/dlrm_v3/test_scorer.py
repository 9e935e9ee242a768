"""The scorer beside the float64 model: parts, encodings, and checkpoints that do not fit."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from dlrm.metrics import probabilities
from dlrm_v3.data.batch import RequestBatch
from dlrm_v3.data.stream import RequestStream
from dlrm_v3.model.hstu import build_model
from dlrm_v3.model.inputs import Vectors
from dlrm_v3.scorer import HstuScorer
from serving.loadgen.timeline import Timeline
from tests.support import hstu_batches, reference_hstu
from tests.support.hstu_checkpoints import MODEL, write_hstu, write_stream
from tests.support.tape import Node


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> RequestStream:
    return write_stream(tmp_path_factory.mktemp("stream"))


def requests(stream: RequestStream, count: int) -> RequestBatch:
    timestamp = stream.config.train_timestamps + 1
    users = stream.users(timestamp, "inference")[::-1][:count]
    return stream.batch(users, timestamp, "inference", MODEL.max_history)


def expected(stream: RequestStream, batch: RequestBatch, tables: list[np.ndarray]) -> np.ndarray:
    """The predictions of the float64 model with the weights that `write_hstu` writes."""
    length = 1 + MODEL.max_history + stream.config.candidates
    model = build_model(MODEL, max_length=length, seed=3, dtype="float32", fused=False, xla=False)
    weights = {
        name: Node(weight.numpy().astype(np.float64))
        for name, weight in hstu_batches.weights(model).items()
    }
    items, categories, users = (table.astype(np.float64) for table in tables)
    vectors = Vectors(Node(items[batch.items]), Node(categories), Node(users[batch.users]))
    ipc = stream.config.items_per_category
    logits = reference_hstu.logits(MODEL, length, weights, batch, vectors, ipc)
    return 1 / (1 + np.exp(-logits.value[:, 0]))


@pytest.mark.parametrize("ranks", [1, 3])
def test_predictions_are_those_of_the_float64_model(
    stream: RequestStream, tmp_path: Path, ranks: int
) -> None:
    tables, checkpoint = write_hstu(tmp_path / "checkpoint", stream, ranks=ranks)
    scorer = HstuScorer.open(checkpoint, stream, "float32")
    batch = requests(stream, 5)
    found = scorer.score(batch)
    assert found.dtype == np.float32
    assert found.std() > 1e-3
    np.testing.assert_allclose(found, expected(stream, batch, tables), rtol=2e-5)


@pytest.mark.parametrize("part", [1, 7, 24, 50])
def test_candidates_are_scored_alike_in_parts_of_any_size(
    stream: RequestStream, tmp_path: Path, part: int
) -> None:
    _, checkpoint = write_hstu(tmp_path / "checkpoint", stream)
    scorer = HstuScorer.open(checkpoint, stream, "float32")
    batch = requests(stream, 3)
    whole = scorer.score(batch)
    scorer._targets_at_once = part
    np.testing.assert_allclose(scorer.score(batch), whole, rtol=1e-5)


def test_a_request_is_scored_alike_alone_and_with_others(
    stream: RequestStream, tmp_path: Path
) -> None:
    _, checkpoint = write_hstu(tmp_path / "checkpoint", stream)
    scorer = HstuScorer.open(checkpoint, stream, "int8")
    together = scorer.score(requests(stream, 4))
    with ThreadPoolExecutor(4) as pool:
        timestamp = stream.config.train_timestamps + 1
        users = stream.users(timestamp, "inference")[::-1][:4]
        alone = pool.map(
            lambda user: scorer.score(
                stream.batch(np.array([user]), timestamp, "inference", MODEL.max_history)
            ),
            users,
        )
        np.testing.assert_allclose(np.concatenate(list(alone)), together, rtol=1e-5)


@pytest.mark.parametrize(("encoding", "bound"), [("int8", 0.01), ("int4", 0.15)])
def test_fewer_bits_cost_a_little(
    stream: RequestStream, tmp_path: Path, encoding: str, bound: float
) -> None:
    tables, checkpoint = write_hstu(tmp_path / "checkpoint", stream)
    batch = requests(stream, 8)
    found = HstuScorer.open(checkpoint, stream, encoding).score(batch)
    difference = abs(found - expected(stream, batch, tables)).max()
    print(f"{encoding}: {difference:.2g}")
    assert 1e-5 < difference < bound


def test_sparse_and_dense_times_are_recorded(stream: RequestStream, tmp_path: Path) -> None:
    _, checkpoint = write_hstu(tmp_path / "checkpoint", stream)
    scorer = HstuScorer.open(checkpoint, stream, "float32")
    timeline = Timeline()
    for number in range(2):
        with timeline.batch(number):
            scorer.score(requests(stream, 2), timeline)
    for name in ("sparse", "dense"):
        assert (timeline.seconds(name) > 0).tolist() == [True, True]


def test_a_request_without_candidates_and_an_unknown_item_are_named(
    stream: RequestStream, tmp_path: Path
) -> None:
    _, checkpoint = write_hstu(tmp_path / "checkpoint", stream)
    scorer = HstuScorer.open(checkpoint, stream, "int4")
    batch = requests(stream, 2)
    items = batch.items.copy()
    items[3] = stream.config.items
    with pytest.raises(ValueError, match="items: expected an id from 0 to 1,199, found 1200"):
        scorer.score(batch._replace(items=items))
    cut = batch.offsets[1] - batch.targets[0]
    without = batch._replace(
        users=batch.users[:1],
        **{name: getattr(batch, name)[:cut] for name in ("items", "actions", "times")},
        offsets=np.array([0, cut], np.int32),
        targets=np.array([0], np.int32),
    )
    with pytest.raises(ValueError, match=f"user {batch.users[0]}: expected a request with cand"):
        scorer.score(without)


def refused(checkpoint: Path, stream: RequestStream) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        HstuScorer.open(checkpoint, stream, "float32")
    assert "\n" not in str(error.value)
    assert str(checkpoint) in str(error.value)
    return str(error.value)


def test_a_model_of_other_data_is_refused(stream: RequestStream, tmp_path: Path) -> None:
    other = write_stream(tmp_path / "other", "--seed=7")
    _, checkpoint = write_hstu(tmp_path / "checkpoint", other)
    assert "expected a model of this data" in refused(checkpoint, stream)


def test_a_checkpoint_that_is_no_model_of_ours_is_refused(
    stream: RequestStream, tmp_path: Path
) -> None:
    _, checkpoint = write_hstu(tmp_path / "other", stream, settings={"seed": 1})
    assert "expected a model of DLRMv3" in refused(checkpoint, stream)
    settings = {**dataclasses.asdict(MODEL), "max_length": 47}
    regression = {**settings, "tasks": ["stars"]}
    _, checkpoint = write_hstu(tmp_path / "regression", stream, settings=regression)
    assert "expected a model with the task rating" in refused(checkpoint, stream)
    wider = {**settings, "hidden": MODEL.hidden + 1}
    _, checkpoint = write_hstu(tmp_path / "wider", stream, settings=wider)
    assert "dense.safetensors: expected item_kernel_0 of shape" in refused(checkpoint, stream)


def test_a_damaged_checkpoint_is_refused(stream: RequestStream, tmp_path: Path) -> None:
    _, checkpoint = write_hstu(tmp_path / "checkpoint", stream)
    path = checkpoint / "dense.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert "dense.safetensors" in refused(checkpoint, stream)
    manifest = checkpoint / "manifest.json"
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**text, "ranks": 2}))
    assert "damaged" in refused(checkpoint, stream)


def test_probabilities_are_of_the_task_that_is_judged(
    stream: RequestStream, tmp_path: Path
) -> None:
    """The rating's column, wherever it is among the heads."""
    model = dataclasses.replace(MODEL, tasks=("stars", "rating"))
    _, checkpoint = write_hstu(tmp_path / "checkpoint", stream, model)
    scorer = HstuScorer.open(checkpoint, stream, "float32")
    logits = np.array([[3, -1], [0.5, 2]], np.float32).repeat(24, axis=0)
    scorer._score = lambda *inputs: tf.constant(logits)
    found = scorer.score(requests(stream, 2))
    np.testing.assert_array_equal(found, probabilities(logits[:, 1]))
