"""Evaluation of artifacts: the figures beside scikit-learn's, and where float32's come from."""

from __future__ import annotations

import json
import shutil
import zlib

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from dlrm.checkpoint.manifest import ModelShape
from dlrm.data.split_files import SplitSource
from dlrm.metrics import Quality
from serving import __main__ as serving
from serving import evaluate as module
from serving.calibration import calibrate
from serving.evaluate import Comparison, evaluate, report
from serving.export import ExportOptions, export
from serving.scorer import Scorer
from tests.support.artifacts import write_artifact
from tests.support.checkpoints import random_weights, write_checkpoint
from tests.support.reference_interactions import interact
from tests.support.tiny_data import write_split

VOCAB_SIZES, SAMPLES, SEED = (7, 3, 11), 500, 9
MODEL = ModelShape(3, VOCAB_SIZES, 4, (5, 4), (6, 1))


@pytest.fixture(name="samples", scope="module")
def random_samples():
    dice = np.random.default_rng(SEED)
    labels = dice.integers(0, 2, SAMPLES).astype("<i4")
    dense = dice.normal(size=(SAMPLES, 3)).astype("<f4")
    return labels, dense, dice.integers(0, VOCAB_SIZES, (SAMPLES, 3)).astype("<i4")


@pytest.fixture(name="data", scope="module")
def test_split(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("data") / "test"
    return write_split(folder, *samples, VOCAB_SIZES, num_dense=3, dense_log=False)


@pytest.fixture(name="exported", scope="module")
def checkpoint_and_artifacts(tmp_path_factory, data):
    """A folder with a checkpoint, its artifact in float32, and two in int8."""
    folder = tmp_path_factory.mktemp("exported")
    rows = np.random.default_rng(SEED).normal(size=(21, 4)).astype("<f4")
    checkpoint = write_checkpoint(folder / "c", MODEL, rows, random_weights(MODEL, 1), ranks=2)
    calibrate(checkpoint, data, samples=SAMPLES, method="minmax").write(folder / "ranges")
    int8 = {"tables": "int8_rows", "dense": "int8", "calibration": folder / "ranges"}
    for name, options in (
        ("float32", {}),
        ("int8", int8),
        ("measured", {**int8, "data": data}),
    ):
        options = ExportOptions(**options, saved_model=False)
        export(checkpoint, folder / name, options, lambda line: None)
    return folder


def figures(logits, labels):
    """AUC, log loss and normalised entropy by scikit-learn."""
    loss = log_loss(labels, 1 / (1 + np.exp(-logits)))
    return (
        roc_auc_score(labels, logits),
        loss,
        loss / log_loss(labels, np.full(len(labels), labels.mean())),
        len(labels),
    )


def by_int8(tensors, mlp, values):
    """An MLP by the words of the format, in float64."""
    count = sum(name.startswith(f"{mlp}_bias") for name in tensors)
    for number in range(count):
        scale, zero = (tensors[f"{mlp}_input_{part}_{number}"] for part in ("scale", "zero"))
        steps = np.clip(np.rint(values / scale.astype(np.float64)) + zero, 0, 255) - zero
        sums = steps @ tensors[f"{mlp}_kernel_{number}"].astype(np.float64)
        values = sums * tensors[f"{mlp}_kernel_scale_{number}"] + tensors[f"{mlp}_bias_{number}"]
        if mlp == "bottom" or number < count - 1:
            values = np.maximum(values, 0)
    return values


@pytest.mark.parametrize("tables", ["float32", "float16", "int8", "int8_rows"])
def test_figures_are_those_of_scikit_learn(tmp_path, data, samples, tables, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 128)
    reference = write_artifact(tmp_path / "a", VOCAB_SIZES, tables=tables, seed=3)
    labels, dense, ids = samples
    found = evaluate(tmp_path / "a", data)
    expected = figures(reference.logits(dense, ids), labels)
    own = found.artifact
    assert own.auc == pytest.approx(expected[0], abs=1e-4)  # near ties may fall otherwise
    assert own.log_loss == pytest.approx(expected[1], rel=1e-5)
    assert own.normalised_entropy == pytest.approx(expected[2], rel=1e-5)
    assert own.samples == SAMPLES
    assert found.data == SplitSource(data).fingerprint
    if tables == "float32":
        assert found.reference == own
    else:
        assert found.reference is None


def test_the_scorer_computes_what_was_quantised(exported, samples):
    """The whole way: calibrated, quantised, exported, scored."""
    from safetensors.numpy import load_file

    tensors = load_file(exported / "int8" / "dense.safetensors")
    rows = load_file(exported / "int8" / "tables.safetensors")["rows"]
    scale, bias = rows[:, 4:].copy().view("<f4").astype(np.float64).T
    rows = rows[:, :4] * scale[:, None] + bias[:, None]
    _, dense, ids = samples
    bottom = by_int8(tensors, "bottom", dense.astype(np.float64))
    vectors = rows[ids + np.array([0, 7, 10])]
    joined = interact(np.concatenate([bottom[:, None], vectors], axis=1), 16)
    expected = by_int8(tensors, "top", joined)[:, 0]
    with Scorer.open(exported / "int8") as scorer:
        found = scorer.score(dense, ids)
    # float32 may round a value to the neighbouring step; then one step apart is all that it is.
    close = np.abs(found - expected) < 1e-4
    assert close.mean() > 0.97
    assert np.abs(found - expected).max() < 0.1


def test_the_reference_is_another_artifact(exported, data):
    found = evaluate(exported / "int8", data, reference=exported / "float32")
    own = evaluate(exported / "float32", data)
    assert found.reference == own.artifact == own.reference
    assert found.artifact == evaluate(exported / "int8", data).artifact
    assert found.artifact != found.reference
    assert found.origin == str(exported / "float32")


def test_the_reference_is_what_the_export_measured(exported, data, tmp_path, samples):
    found = evaluate(exported / "measured", data)
    by_scorer = evaluate(exported / "float32", data).artifact
    assert found.reference is not None
    assert found.reference.auc == pytest.approx(by_scorer.auc, abs=1e-4)
    assert found.reference.log_loss == pytest.approx(by_scorer.log_loss, rel=1e-6)
    assert found.origin == "as the export measured it"
    labels, dense, ids = samples
    other = write_split(
        tmp_path / "other", 1 - labels, dense, ids, VOCAB_SIZES, num_dense=3, dense_log=False
    )
    assert evaluate(exported / "measured", other).reference is None


def test_the_reference_is_what_training_measured(exported, data, tmp_path):
    def with_card(change):
        folder = tmp_path / change.__name__
        shutil.copytree(exported / "int8", folder)
        card = json.loads((folder / "model_card.json").read_text())
        change(card["training"])
        rewrite(folder, "model_card.json", json.dumps(card))
        return evaluate(folder, data).reference

    def same_data(training):
        training["data"] = {"test": SplitSource(data).fingerprint}
        training["evaluation"] = {
            "auc": 0.7, "log_loss": 0.5, "normalised_entropy": None, "samples": SAMPLES
        }  # fmt: skip

    def other_data(training):
        same_data(training)
        training["data"] = {"test": "another", "training": SplitSource(data).fingerprint}

    found = with_card(same_data)
    assert found is not None
    assert (found.auc, found.log_loss, found.samples) == (0.7, 0.5, SAMPLES)
    assert np.isnan(found.normalised_entropy)
    assert with_card(other_data) is None


def rewrite(folder, name, text):
    """Gives a file of an artifact another content, and the description its checksum."""
    (folder / name).write_text(text)
    path = folder / "artifact.json"
    content = json.loads(path.read_text())
    del content["crc32"]
    entry = content["files"][name]
    entry["bytes"], entry["crc32"] = len(text), f"{zlib.crc32(text.encode()):08x}"
    content["crc32"] = f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
    path.write_text(json.dumps(content))


def quality(auc):
    return Quality(auc, 0.5, 0.9, 1234)


@pytest.mark.parametrize(
    ("auc", "held"),
    [(0.8, (True, True)), (0.7993, (True, True)), (0.795, (True, False)), (0.79, (False, False))],
)
def test_what_is_held(auc, held):
    comparison = Comparison(quality(auc), quality(0.8), "there", "data")
    assert (comparison.held(0.99), comparison.held(0.999)) == held
    lines = list(report(comparison))
    words = ["held" if there else "NOT held" for there in held]
    assert lines[-2] == f"99 % of its AUC: {words[0]} (needs 0.792000)"
    assert lines[-1] == f"99.9 % of its AUC: {words[1]} (needs 0.799200)"
    assert f"{auc:.6f}" in lines[2]
    assert f"{100 * (auc / 0.8 - 1):+.4f}%" in lines[3]


def test_the_command(exported, data, capsys, monkeypatch):
    words = ["evaluate", str(exported / "int8"), str(data)]
    assert serving.main([*words, f"--reference={exported / 'float32'}"]) == 0
    found = evaluate(exported / "int8", data, reference=exported / "float32")
    assert capsys.readouterr().out.splitlines() == list(report(found))
    assert serving.main(words) == 0
    assert "float32 model: not known for this data; export it with" in capsys.readouterr().out
    worse = Comparison(quality(0.7), quality(0.8), "there", "data")
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: worse)
    assert serving.main(words) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8", "tables: expected float32, found int8_rows; export the same checkpoint with"),
        ("later", "step: expected 12, found 13; export the same checkpoint with"),
    ],
)
def test_a_reference_that_is_none(exported, data, tmp_path, name, message):
    reference = exported / name
    if name == "later":
        reference = tmp_path / name
        write_artifact(reference, VOCAB_SIZES, seed=3, step=13)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(exported / "int8", data, reference=reference)
    assert str(caught.value).startswith(f"--reference: {reference}: ")


def test_weights_that_are_too_large(tmp_path, data):
    rows = np.full((21, 4), 3e38, "<f4")  # their products overflow
    path = write_checkpoint(tmp_path / "c", MODEL, rows, random_weights(MODEL, 1))
    export(path, tmp_path / "a", ExportOptions(saved_model=False), lambda line: None)
    with pytest.raises(ValueError, match=r"a: sample 0: expected a finite logit, found "):
        evaluate(tmp_path / "a", data)
