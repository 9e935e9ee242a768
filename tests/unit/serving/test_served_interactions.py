"""Models of every interaction from a checkpoint to scores, beside the trainer's and float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from dlrm.checkpoint.manifest import ModelShape
from dlrm.config import Config
from dlrm.layers.interaction_shape import InteractionShape
from dlrm.train.dense_part import plain_name
from model import build_model
from serving import scorer_library
from serving.calibration import Calibration, ColumnRanges, sum_of_weights
from serving.dense_int8 import quantise
from serving.dense_model import LOGITS, DenseModel
from serving.export import ExportOptions, export
from serving.scorer import Scorer
from tests.support.artifacts import ArtifactReference, write_artifact
from tests.support.checkpoints import random_weights, write_checkpoint
from tests.support.processes import run

SEED = 73
BOUND = 1e-5
BATCHES = (1, 3, 17, 65, 300)
CROSSED = InteractionShape("dcnv2", 3, 40)
INTERACTIONS = {
    "dcnv2": CROSSED,
    "sum": InteractionShape("sum"),
    "concat": InteractionShape("concat"),
}
SIZES, WIDTH, NUM_DENSE = (60, 3, 1, 20), 12, 5
UNITS: dict[str, Any] = {"bottom_mlp": (33, WIDTH), "top_mlp": (70, 9, 1)}


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    ended = run(["make", "--directory=serving/core"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]


def artifact(folder: Path, shape: InteractionShape, **settings: Any) -> ArtifactReference:
    return write_artifact(
        folder,
        SIZES,
        WIDTH,
        NUM_DENSE,
        UNITS["bottom_mlp"],
        UNITS["top_mlp"],
        interaction=shape.kind,
        cross_layers=shape.cross_layers,
        cross_rank=shape.cross_rank,
        **settings,
    )


def samples(batch: int) -> tuple[Any, Any]:
    """Random dense features and ids."""
    print("samples of seed", SEED)
    generator = np.random.default_rng(SEED)
    dense = generator.standard_normal((batch, NUM_DENSE), np.float32)
    return dense, generator.integers(0, SIZES, (batch, len(SIZES)), np.int32)


def assert_close(found: Any, expected: Any) -> None:
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("shape", INTERACTIONS.values(), ids=INTERACTIONS)
@pytest.mark.parametrize("tables", ["float32", "int8_rows"])
def test_the_scorer_is_that_of_float64_on_every_level(
    tmp_path: Path, shape: InteractionShape, tables: str
) -> None:
    reference = artifact(tmp_path / "a", shape, tables=tables)
    dense, ids = samples(max(BATCHES))
    expected = reference.logits(dense, ids)
    for level in scorer_library.levels():
        with Scorer.open(tmp_path / "a", threads=2, level=level) as scorer:
            for batch in BATCHES:
                found = scorer.score(dense[:batch], ids[:batch])
                np.testing.assert_allclose(found, expected[:batch], rtol=BOUND, atol=BOUND)
            assert_close(found, expected)


@pytest.mark.parametrize("shape", INTERACTIONS.values(), ids=INTERACTIONS)
def test_candidates_of_one_user(tmp_path: Path, shape: InteractionShape) -> None:
    reference = artifact(tmp_path / "a", shape)
    dense, ids = samples(50)
    ids[:, [0, 2]] = ids[0, [0, 2]]
    dense[:] = dense[0]
    with Scorer.open(tmp_path / "a", threads=2) as scorer:
        found = scorer.score_candidates(dense[0], ids[0, [0, 2]], ids[:, [1, 3]], (0, 2))
    assert_close(found, reference.logits(dense, ids))


@pytest.mark.parametrize("shape", INTERACTIONS.values(), ids=INTERACTIONS)
def test_int8_mlps_around_float_cross_layers(tmp_path: Path, shape: InteractionShape) -> None:
    reference = artifact(tmp_path / "a", shape, dense="int8")
    dense, ids = samples(max(BATCHES))
    expected = reference.logits(dense, ids)
    found = {}
    for level in scorer_library.levels():
        with Scorer.open(tmp_path / "a", threads=2, level=level) as scorer:
            found[level] = scorer.score(dense, ids)
        # A value at the border of two steps may round to either.
        errors = np.abs(found[level] - expected)
        assert np.mean(errors < BOUND * (1 + np.abs(expected))) > 0.9
        assert errors.max() < 0.1 * np.std(expected)


@pytest.mark.parametrize("shape", INTERACTIONS.values(), ids=INTERACTIONS)
def test_an_export_scores_as_the_trainer(tmp_path: Path, shape: InteractionShape) -> None:
    settings: dict[str, Any] = {"embedding_dim": WIDTH, "interaction": shape.kind, **UNITS}
    if shape.cross_layers:
        settings.update(cross_layers=shape.cross_layers, cross_rank=shape.cross_rank)
    config = Config.of(use_synthetic_dataset=True, **settings)
    model = ModelShape(
        NUM_DENSE,
        SIZES,
        WIDTH,
        UNITS["bottom_mlp"],
        UNITS["top_mlp"],
        interaction=shape.kind,
        cross_layers=shape.cross_layers,
        cross_rank=shape.cross_rank,
    )
    weights = random_weights(model, seed=SEED)
    generator = np.random.default_rng(SEED)
    rows = generator.normal(size=(sum(SIZES), WIDTH)).astype(np.float32)
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", model, rows, weights, ranks=2, settings=config.flat()
    )
    export(checkpoint, tmp_path / "out", ExportOptions(), lambda line: None)
    dense, ids = samples(200)
    vectors = rows[ids + np.cumsum([0, *SIZES[:-1]])]

    trained = build_model(config)
    trained(tf.zeros([1, NUM_DENSE]), tf.zeros([1, len(SIZES), WIDTH]))
    for weight in trained.trainable_variables:
        weight.assign(weights[plain_name(weight)])
    expected = trained(tf.constant(dense), tf.constant(vectors)).numpy()

    assert_close(DenseModel(weights, model).logits(dense, vectors), expected)
    with Scorer.open(tmp_path / "out") as scorer:
        assert_close(scorer.score(dense, ids), expected)
    signature = tf.saved_model.load(str(tmp_path / "out" / "saved_model")).signatures
    answer = signature["serving_default"](dense=tf.constant(dense), ids=tf.constant(ids))
    assert_close(answer["logits"].numpy(), expected)

    ranges = {
        name: ColumnRanges(values.min(axis=0), values.max(axis=0))
        for name, values in DenseModel(weights, model).steps(dense, vectors)
        if name != LOGITS
    }
    sums = sum_of_weights(weights)
    calibration = Calibration(model, 12, sums, "data", len(dense), "minmax", ranges)
    stored = quantise(weights, calibration, model)
    for name, values in weights.items():
        if name.startswith("cross"):
            np.testing.assert_array_equal(stored[name], values)
    assert stored["top_kernel_0"].dtype == np.int8


def test_a_checkpoint_without_its_cross_layers_is_refused(tmp_path: Path) -> None:
    model = ModelShape(
        NUM_DENSE,
        SIZES,
        WIDTH,
        UNITS["bottom_mlp"],
        UNITS["top_mlp"],
        interaction="dcnv2",
        cross_layers=3,
        cross_rank=40,
    )
    weights = random_weights(model, seed=SEED)
    del weights["cross_w_1"]
    rows = np.zeros((sum(SIZES), WIDTH), np.float32)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", model, rows, weights)
    with pytest.raises(ValueError, match=r"expected cross_w_1 of shape \[40, 60\], found None"):
        export(checkpoint, tmp_path / "out", ExportOptions(), lambda line: None)
