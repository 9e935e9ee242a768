"""Checkpoints of dynamic tables as artifacts: own, shared and initial rows, of any number of ranks.

What an id must have, `tests.support.dynamic_model` decides one id after the other.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from serving import row_frequencies
from serving.__main__ import main
from serving.artifact import read_artifact
from serving.scorer import Scorer
from tests.support.checkpoints import DynamicRow, random_weights, write_dynamic_checkpoint
from tests.support.dynamic_model import LARGEST, MODEL, SEED, SIZES, DynamicModel
from tests.support.processes import run
from tests.support.tiny_data import write_split


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    ended = run(["make", "--directory=serving/core"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]


@pytest.fixture(params=[True, False], ids=["shared", "initial"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> DynamicModel:
    return DynamicModel(tmp_path / "of", shares=request.param)


def test_logits_are_those_of_the_rows_that_an_evaluation_finds(
    case: DynamicModel, tmp_path: Path
) -> None:
    artifact = case.export(tmp_path / "a")
    np.testing.assert_allclose(case.score(artifact), case.expected, rtol=1e-5, atol=1e-5)
    loaded = tf.saved_model.load(str(artifact / "saved_model")).signatures["serving_default"]
    found = loaded(dense=tf.constant(case.dense), ids=tf.constant(case.samples))["logits"]
    np.testing.assert_allclose(found, case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tables", ["float16", "int8", "int8_rows"])
def test_small_rows_in_order_of_use(case: DynamicModel, tmp_path: Path, tables: str) -> None:
    counts = str(tmp_path / "counts")
    assert main(["count", str(case.data), counts]) == 0
    words = [f"--tables={tables}", f"--row_frequencies={counts}"]
    artifact = case.export(tmp_path / "a", *words)
    bound = 0.002 if tables == "float16" else 0.1
    scored = case.score(artifact)
    np.testing.assert_allclose(scored, case.expected, atol=bound)
    loaded = tf.saved_model.load(str(artifact / "saved_model")).signatures["serving_default"]
    found = loaded(dense=tf.constant(case.dense), ids=tf.constant(case.samples))["logits"]
    np.testing.assert_allclose(found, scored, rtol=1e-5, atol=1e-5)
    # Rows fall by use; that of all ids without one is used by each of them.
    uses, names = [], []
    for table, column in zip(case.reference.tables, case.samples.T):
        known = sorted(table.known)
        uses += [sum(number not in table.known for number in column)]
        uses += [int((column == number).sum()) for number in known]
        names.append(len(known))
    positions = load_file(artifact / "row_order.safetensors")["positions"]
    by_use = np.array(uses)[np.argsort(positions)]
    assert (np.diff(by_use) <= 0).all()
    assert read_artifact(artifact).known_ids.counts == tuple(names)  # type: ignore[union-attr]


def test_the_number_of_ranks_leaves_no_trace(tmp_path: Path) -> None:
    for shares in (True, False):
        for ranks in (1, 2, 3):
            of_ranks = DynamicModel(tmp_path / f"{shares}{ranks}", shares=shares, ranks=ranks)
            out = of_ranks.export(tmp_path / f"{shares}" / str(ranks), "--no_saved_model")
            for path in out.iterdir():
                assert path.read_bytes() == (out.parent / "1" / path.name).read_bytes(), path.name


def test_every_command_takes_the_model(
    case: DynamicModel, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, ranges = str(case.data), str(tmp_path / "ranges.json")
    assert main(["calibrate", str(case.checkpoint), data, ranges]) == 0
    words = ["--dense=int8", f"--calibration={ranges}", f"--data={data}", "--no_saved_model"]
    artifact = case.export(tmp_path / "a", *words)
    capsys.readouterr()
    assert main(["verify", str(artifact)]) == 0
    assert main(["info", str(artifact)]) == 0
    known = sum(len(table.known) for table in case.reference.tables)
    printed = capsys.readouterr().out
    assert f"known ids: {known}; any other has" in printed
    assert f"{known + len(SIZES)} rows" in printed
    assert main(["evaluate", str(artifact), data]) == 0
    assert "the float32 model's figures: as the export measured it" in capsys.readouterr().out
    # What the export measured of the float32 model is what its logits give.
    positive = np.fromfile(case.data / "label.bin", "<i4") == 1
    pairs = case.expected[positive][:, None] - case.expected[~positive][None]
    auc = np.mean(pairs > 0) + np.mean(pairs == 0) / 2
    card = json.loads((artifact / "model_card.json").read_text())
    assert card["cost"]["quality"]["reference"]["auc"] == pytest.approx(auc, abs=1e-4)
    assert card["model"]["rows"] == known + len(SIZES)
    (artifact / "known_ids.safetensors").write_bytes(b"\0" * 20)
    assert main(["verify", str(artifact)]) == 1
    assert "known_ids.safetensors: expected" in capsys.readouterr().out


def test_values_that_are_not_finite_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = np.full(6, np.nan, "<f4")
    good = np.zeros((len(SIZES), 6), "<f4")
    shared = good.copy()
    shared[2] = bad
    for name, ids, others, message in (
        ("row", {LARGEST - 1: DynamicRow(bad, 9)}, good, f"table 3, id {LARGEST - 1}, value 0"),
        ("shared", {}, shared, "table 2, the row of all ids without one, value 0"),
    ):
        tables = [{}, {}, {}, ids]
        checkpoint = write_dynamic_checkpoint(
            tmp_path / name, MODEL, tables, others, random_weights(MODEL, seed=7)
        )
        assert main(["export", str(checkpoint), str(tmp_path / "a"), "--no_saved_model"]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("shares", [True, False])
def test_no_id_is_known(tmp_path: Path, shares: bool) -> None:
    """As in a run that ended before any id was admitted."""
    shared = np.ones((len(SIZES) if shares else 0, 6), "<f4")
    weights = random_weights(MODEL, seed=7)
    tables: list[dict[int, DynamicRow]] = [{} for _ in SIZES]
    checkpoint = write_dynamic_checkpoint(tmp_path / "c", MODEL, tables, shared, weights)
    assert main(["export", str(checkpoint), str(tmp_path / "a")]) == 0
    dense, ids = np.ones((2, 3), np.float32), np.array([[5, 5, 5, 5], [0, 49, 9, 1]], np.int32)
    with Scorer.open(tmp_path / "a") as scorer:
        scored = scorer.score(dense, ids)
    assert (scored[0] == scored[1]) == shares
    loaded = tf.saved_model.load(str(tmp_path / "a" / "saved_model")).signatures["serving_default"]
    found = loaded(dense=tf.constant(dense), ids=tf.constant(ids))["logits"]
    np.testing.assert_allclose(found, scored, rtol=1e-5, atol=1e-5)


def test_ids_without_a_dictionary_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(row_frequencies, "BLOCK_SAMPLES", 64)
    dice = np.random.default_rng(SEED)
    ids = (dice.zipf(1.3, (1000, 2)) * 7_654_321 % LARGEST).astype("<i4")
    ids[0] = LARGEST - 1
    zeros = np.zeros(1000, "<i4")
    sizes = (LARGEST, LARGEST)
    data = write_split(tmp_path / "d", zeros, np.zeros((1000, 1), "<i4"), ids, sizes)
    assert main(["count", str(data), str(tmp_path / "counts")]) == 0
    assert "2,000 uses of" in capsys.readouterr().out
    content = load_file(tmp_path / "counts")
    parts = [np.unique(column, return_counts=True) for column in ids.T]
    keys = np.concatenate([parts[0][0], parts[1][0].astype(np.int64) + LARGEST])
    np.testing.assert_array_equal(content["keys"], keys)
    np.testing.assert_array_equal(content["counts"], np.concatenate([c for _, c in parts]))
