"""The report of a model: figures beside scikit-learn's, a page that stands alone, refusals."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from dlrm.checkpoint.manifest import ModelShape
from dlrm.formats.metadata import Metadata, write_metadata
from dlrm.metrics import probabilities
from tests.support.checkpoints import random_weights, write_checkpoint
from tests.support.processes import run
from tools.report.__main__ import main
from tools.report.figures import calibration, calibration_error, grouped_auc, groups_of
from tools.report.scores import ReportedModel

SEED, SAMPLES, NUM_DENSE, WIDTH = 2718, 6000, 3, 4
SIZES = (30, 5, 400)
MODEL = ModelShape(NUM_DENSE, SIZES, WIDTH, (8, WIDTH), (8, 1))


def scored(samples: int = 5000) -> tuple[Any, Any, Any]:
    """Groups of very different sizes, predictions with many ties, and labels that follow them."""
    print("seed", SEED)
    generator = np.random.default_rng(SEED)
    values = np.minimum(generator.geometric(0.3, samples), 40).astype(np.int32)
    predictions = (np.rint(generator.random(samples) * 50) / 60).astype(np.float32)
    labels = (generator.random(samples) < predictions).astype(np.float32)
    return values, predictions, labels


def test_groups_are_those_of_scikit_learn() -> None:
    values, predictions, labels = scored()
    groups = groups_of(values, predictions, labels)
    assert sum(group.samples for group in groups) == len(values)
    assert [g.samples for g in groups] == sorted((g.samples for g in groups), reverse=True)
    assert {g.value for g in groups} == set(values.tolist())
    single = 0
    for group in groups:
        own = values == group.value
        assert (group.samples, group.positives) == (own.sum(), labels[own].sum())
        assert group.mean == pytest.approx(predictions[own].mean(dtype=np.float64))
        if len(set(labels[own])) == 1:
            single += 1
            assert np.isnan(group.auc)
        else:
            assert group.auc == pytest.approx(roc_auc_score(labels[own], predictions[own]))
    assert single, "a group with one label only"
    both = [group for group in groups if 0 < group.positives < group.samples]
    expected = np.average([g.auc for g in both], weights=[g.samples for g in both])
    assert grouped_auc(groups) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [1, 7, 20, 100])
def test_calibration_is_that_of_scikit_learn(bins: int) -> None:
    _, predictions, labels = scored()
    found = calibration(predictions, labels, bins)
    rates, means = calibration_curve(labels, predictions, n_bins=bins, strategy="quantile")
    assert [part.mean for part in found] == pytest.approx(means)
    assert [part.rate for part in found] == pytest.approx(rates)
    assert sum(part.samples for part in found) == len(labels)
    weights = [part.samples for part in found]
    error = np.average(np.abs(rates - means), weights=weights)
    assert calibration_error(found) == pytest.approx(error)


class ReportSetting:
    """A checkpoint, and test data whose labels follow its own predictions."""

    def __init__(self, folder: Path, interaction: str) -> None:
        self.model = dataclasses.replace(MODEL, interaction=interaction)
        generator = np.random.default_rng(SEED)
        self.weights = random_weights(self.model, seed=3)
        # Category 1 is never looked at.
        self.rows = generator.normal(size=(sum(SIZES), WIDTH)).astype(np.float32)
        self.rows[SIZES[0] : SIZES[0] + SIZES[1]] = 0
        self.checkpoint = folder / "checkpoints" / "step-0000000012"
        write_checkpoint(self.checkpoint, self.model, self.rows, self.weights, ranks=2)
        self.dense = generator.random((SAMPLES, NUM_DENSE), np.float32)
        self.ids = generator.integers(0, SIZES, (SAMPLES, len(SIZES)), np.int32)
        self.data = folder / "data"
        test = self.data / "test"
        test.mkdir(parents=True)
        self.labels: Any = np.zeros(SAMPLES, np.float32)
        self._write(test)
        logits = ReportedModel(self.checkpoint, test).score(None).logits
        self.labels = (generator.random(SAMPLES) < probabilities(logits)).astype(np.float32)
        self._write(test)
        self.run = folder / "run"
        self.run.mkdir()
        start = {"event": "start", "settings": {"checkpoint_dir": str(folder / "checkpoints")}}
        (self.run / "events.jsonl").write_text(json.dumps(start) + "\n{cut sh")

    def _write(self, folder: Path) -> None:
        write_metadata(folder, Metadata(SIZES, "float32", "float32", "int32", False, NUM_DENSE))
        self.labels.astype("<f4").tofile(folder / "label.bin")
        self.dense.tofile(folder / "dense.bin")
        self.ids.tofile(folder / "category.bin")


@pytest.fixture(scope="module", params=["dot", "sum"], name="trained")
def trained_model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> ReportSetting:
    return ReportSetting(tmp_path_factory.mktemp("report"), request.param)


def test_importance_is_the_auc_that_is_lost(trained: ReportSetting) -> None:
    reported = ReportedModel(trained.checkpoint, trained.data / "test")
    found = list(reported.importance(SAMPLES, 2, seed=5))
    names = [f"dense {n}" for n in range(NUM_DENSE)] + [f"category {n}" for n in range(3)]
    assert [column.name for column in found] == names
    whole = reported.score(None)
    auc = roc_auc_score(whole.labels, whole.logits)
    # Column `category 2` shuffled by hand, with the rows in memory.
    losses = []
    offsets = np.cumsum([0, *SIZES[:-1]])
    for repeat in range(2):
        ids = trained.ids.copy()
        ids[:, 2] = np.random.default_rng([5, 1, 2, repeat]).permutation(ids[:, 2])
        logits = reported._model.logits(trained.dense, trained.rows[ids + offsets])
        losses.append(auc - roc_auc_score(trained.labels, logits))
    assert found[-1].mean == pytest.approx(np.mean(losses), abs=1e-7)
    assert found[-1].deviation == pytest.approx(np.std(losses), abs=1e-7)
    assert found[-1].mean > 0.02
    assert found[-2].mean == pytest.approx(0, abs=1e-12)  # its rows are all zero
    again = list(reported.importance(SAMPLES, 2, seed=5))
    assert again == found
    assert list(reported.importance(SAMPLES, 2, seed=6)) != found


def test_one_page_with_all_in_it(trained: ReportSetting, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = [str(trained.run), f"--data_dir={trained.data}", f"--out={out}", "--auc_by=0"]
    assert main([*words, "--groups=10", "--group_samples=195", "--importance_samples=500"]) == 0
    page = out.read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert not re.search(r"<script|<link|https?://", page)
    whole = ReportedModel(trained.checkpoint, trained.data / "test").score(0)
    auc = roc_auc_score(trained.labels, whole.logits)
    assert f"<td>AUC, exact</td><td>{auc:.6f}</td>" in page
    assert "500 samples; mean and standard deviation of 3 shuffles, seed 0" in page
    counts = np.sort(np.bincount(trained.ids[:, 0]))
    few = counts[counts < 195]
    assert f"Not listed: {len(few)} values of fewer than 195 samples" in page
    assert f"{few.sum():,} samples, the smallest of {few.min()}" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--auc_by=3"], "--auc_by: expected a categorical column from 0 to 2, found 3"),
        (["--bins=0"], "--bins: expected 1 or more, found 0"),
        (["--seed=-1"], "--seed: expected 0 or more, found -1"),
    ],
)
def test_refusals(
    trained: ReportSetting,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    out = tmp_path / "page.html"
    given = [str(trained.checkpoint), f"--data_dir={trained.data}", f"--out={out}", *words]
    assert main(given) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_run_without_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.jsonl").write_text(
        json.dumps({"event": "start", "settings": {"checkpoint_dir": None}})
    )
    assert main([str(tmp_path), f"--data_dir={tmp_path}"]) != 0
    assert "wrote no checkpoint" in capsys.readouterr().err


def test_help() -> None:
    ended = run(["python3", "-m", "tools.report", "--help"], time_limit=60)
    assert ended.code == 0
    assert "--auc_by" in ended.output
