"""From raw logs to scores: what an export says of a model, beside float64 and scikit-learn."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.metrics import log_loss, roc_auc_score

from dlrm.checkpoint.manifest import ModelShape
from dlrm.data import open_split
from preprocess.__main__ import main as preprocess
from serving.__main__ import main
from serving.artifact import Artifact, read_artifact, verify_artifact
from serving.scorer import Scorer
from tests.support.artifacts import ArtifactReference, Layer
from tests.support.checkpoints import random_weights, write_checkpoint
from tests.support.processes import run

ROWS, NUM_DENSE, TABLES, WIDTH = 3000, 2, 3, 8
BOUND = 1e-5


class Setting(NamedTuple):
    """A model and its data.

    Attributes:
        folder: Holds `data`, `checkpoint`, `frequencies` and `calibration`.
        raw_dense: Dense values of all rows of the log, int [rows, columns].
        raw_values: Categorical values of all rows, -1 where a field is empty, int [rows, tables].
        reference: The weights in float64.
    """

    folder: Path
    raw_dense: NDArray[Any]
    raw_values: NDArray[Any]
    reference: ArtifactReference


@pytest.fixture(scope="module", name="setting")
def small_setting(tmp_path_factory) -> Setting:
    ended = run(["make", "--directory=serving/core"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]
    folder = tmp_path_factory.mktemp("exported")
    dice = np.random.default_rng(9)
    values = dice.zipf(1.3, (ROWS, TABLES)) * 2654435761 % 2**32
    values[dice.random(values.shape) < 0.1] = -1
    dense = dice.integers(-3, 50, (ROWS, NUM_DENSE))
    labels = dice.integers(0, 2, ROWS)
    lines = (
        "\t".join([str(label), *map(str, numbers), *("" if v < 0 else f"{v:08x}" for v in fields)])
        for label, numbers, fields in zip(labels, dense, values)
    )
    (folder / "raw.tsv").write_text("\n".join(lines) + "\n")
    shape = [f"--num_dense={NUM_DENSE}", f"--num_categorical={TABLES}", "--columns"]
    rules = ["--rules=spark", "--frequency_threshold=2", "--test_fraction=0.5"]
    data = folder / "data"
    assert preprocess([str(folder / "raw.tsv"), f"--output={data}", *shape, *rules]) == 0
    sizes = tuple(json.loads((data / "records.json").read_text())["vocab_sizes"])
    model = ModelShape(NUM_DENSE, sizes, WIDTH, (16, WIDTH), (32, 1))
    weights = random_weights(model, seed=5)
    rows = dice.normal(size=(sum(sizes), WIDTH)).astype("<f4")
    write_checkpoint(folder / "checkpoint", model, rows, weights, ranks=2)
    assert main(["count", str(data / "train"), str(folder / "frequencies")]) == 0
    words = ["calibrate", str(folder / "checkpoint"), str(data / "train")]
    assert main([*words, str(folder / "calibration")]) == 0
    bottom, top = (
        [Layer(weights[f"{mlp}_kernel_{i}"], weights[f"{mlp}_bias_{i}"]) for i in range(2)]
        for mlp in ("bottom", "top")
    )
    tables = [table.astype(np.float64) for table in np.split(rows, np.cumsum(sizes)[:-1])]
    return Setting(folder, dense, values, ArtifactReference(tables, bottom, top))


def export(setting: Setting, out: Path, *words: str) -> Path:
    assert main(["export", str(setting.folder / "checkpoint"), str(out), *words]) == 0
    return out


def test_an_exported_model_scores_as_it_was_trained(setting, tmp_path):
    data = setting.folder / "data"
    out = export(
        setting,
        tmp_path / "out",
        "--no_saved_model",
        f"--dictionary={data}",
        f"--row_frequencies={setting.folder / 'frequencies'}",
    )
    source = open_split(data / "test", False)
    dense, ids, _ = source.read(0, source.num_samples)
    first = ROWS - source.num_samples
    raw = setting.raw_dense[first:].astype(np.int32), setting.raw_values[first:].astype(np.int64)
    with Scorer.open(out, hot_share=0.4) as scorer:
        logits = scorer.score(dense, ids)
        np.testing.assert_allclose(
            logits, setting.reference.logits(dense, ids), rtol=BOUND, atol=BOUND
        )
        np.testing.assert_allclose(scorer.score_raw(*raw), logits, rtol=BOUND, atol=BOUND)
        lookups = scorer.lookups()
    # The most used 40 % of the rows take far more of the uses.
    assert lookups.hot > 3 * lookups.cold > 0


def test_the_card_compares_with_the_float32_model(setting, tmp_path):
    test = setting.folder / "data" / "test"
    out = export(
        setting,
        tmp_path / "out",
        "--no_saved_model",
        "--tables=int8",
        "--dense=int8",
        f"--calibration={setting.folder / 'calibration'}",
        f"--data={test}",
    )
    source = open_split(test, False)
    dense, ids, labels = source.read(0, source.num_samples)
    card = json.loads((out / "model_card.json").read_text())
    cost = card["cost"]
    with Scorer.open(out) as scorer:
        scored = {
            "reference": setting.reference.logits(dense, ids),
            "artifact": scorer.score(dense, ids).astype(np.float64),
        }
    for name, logits in scored.items():
        figures = cost["quality"][name]
        assert figures["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-6)
        loss = log_loss(labels, 1 / (1 + np.exp(-logits)))
        assert figures["log_loss"] == pytest.approx(loss, rel=1e-5)
        assert figures["samples"] == source.num_samples
    assert cost["calibration"]["samples"] == ROWS // 2
    assert card["stored"]["mlp_bytes"]["top"] < 4 * card["model"]["parameters"]["top"]
    kernel = load_file(out / "dense.safetensors")["top_kernel_0"]
    assert kernel.dtype == np.int8
    text = (out / "model_card.md").read_text()
    assert "of the float32 model's AUC." in text
    assert "The MLPs' weights and inputs take 8 bits" in text


def test_data_of_another_model_is_refused_before_any_work(setting, tmp_path, capsys):
    test = setting.folder / "data" / "test"
    model = ModelShape(NUM_DENSE, (5, 5, 5), WIDTH, (16, WIDTH), (32, 1))
    rows = np.ones((15, WIDTH), np.float32)
    path = write_checkpoint(tmp_path / "c", model, rows, random_weights(model, seed=5))
    words = ["export", str(path), str(tmp_path / "out"), "--no_saved_model", f"--data={test}"]
    assert main(words) == 1
    output = capsys.readouterr()
    assert "rows of table 0" in output.err
    assert output.out == ""


def test_the_files_of_the_saved_model_are_checked_too(setting, tmp_path, monkeypatch):
    """A stand-in writes them; that the real one is right is tested elsewhere."""

    def write(checkpoint: Path, artifact: Artifact, out: Path) -> None:
        assert checkpoint == setting.folder / "checkpoint"
        verify_artifact(artifact)
        (out / "variables").mkdir(parents=True)
        (out / "saved_model.pb").write_bytes(b"graph")
        (out / "variables" / "variables.index").write_bytes(b"")

    module = types.ModuleType("serving.saved_model")
    setattr(module, "write_saved_model", write)  # noqa: B010
    monkeypatch.setitem(sys.modules, "serving.saved_model", module)
    out = export(setting, tmp_path / "out")
    artifact = read_artifact(out)
    assert {"saved_model/saved_model.pb", "saved_model/variables/variables.index"} <= set(
        artifact.files
    )
    verify_artifact(artifact)
    (out / "saved_model" / "saved_model.pb").write_bytes(b"gRaph")
    with pytest.raises(ValueError, match=r"saved_model.pb: damaged between offsets 0 and 5"):
        verify_artifact(artifact)
