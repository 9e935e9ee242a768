"""The NumPy model that calibration runs, against the float64 reference of the trainer's tests."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm.checkpoint.manifest import ModelShape
from serving.dense_model import DenseModel, interact, layer_names
from tests.support.checkpoints import random_weights
from tests.support.reference_model import ReferenceDLRM

MODEL = ModelShape(3, (7, 1, 20), 4, (6, 4), (8, 5, 1))


def test_the_interaction_of_two_vectors_by_hand():
    bottom = np.array([[1, 2]], np.float32)
    vectors = np.array([[[3, 4], [5, 6]]], np.float32)
    # Pairs: (vector 0, bottom) = 11; (vector 1, bottom) = 17, (vector 1, vector 0) = 39.
    assert interact(bottom, vectors, 8).tolist() == [[1, 2, 11, 17, 39, 0, 0, 0]]


def test_logits_and_the_input_of_every_layer():
    dice = np.random.default_rng(8)
    weights = random_weights(MODEL, seed=3)
    tables = [dice.normal(size=(rows, 4)).astype(np.float32) for rows in MODEL.vocab_sizes]
    dense = dice.normal(size=(50, 3)).astype(np.float32)
    ids = dice.integers(0, MODEL.vocab_sizes, (50, 3))
    layers = {
        mlp: [(weights[f"{mlp}_kernel_{n}"], weights[f"{mlp}_bias_{n}"]) for n in range(count)]
        for mlp, count in (("bottom", 2), ("top", 3))
    }
    reference = ReferenceDLRM(tables, layers["bottom"], layers["top"])
    expected = reference.logits(dense, ids)
    model = DenseModel(weights, MODEL)
    vectors = np.stack([table[column] for table, column in zip(tables, ids.T)], axis=1)
    assert model.logits(dense, vectors) == pytest.approx(expected, abs=1e-5)
    seen = dict(model.steps(dense, vectors))
    inputs = reference._bottom_values[:-1] + reference._top_values[:-1]
    assert layer_names(MODEL) == [*seen][:-1] == ["bottom_0", "bottom_1", "top_0", "top_1", "top_2"]
    for (name, found), wanted in zip(seen.items(), inputs):
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=name)
