"""Calibration of a small checkpoint, against the float64 model over all of its samples."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from dlrm.checkpoint.manifest import ModelShape
from serving import __main__ as serving
from serving import checkpoint_samples, ranges
from serving.calibration import calibrate, read_calibration
from serving.checkpoint_samples import ModelSamples
from tests.support.checkpoints import random_weights, write_checkpoint
from tests.support.reference_model import ReferenceDLRM
from tests.support.tiny_data import write_split

MODEL = ModelShape(3, (40, 1, 200), 4, (6, 4), (8, 1))
SAMPLES, SEED = 300, 5
WEIGHTS = random_weights(MODEL, SEED)
ROWS = np.random.default_rng(SEED).normal(size=(241, 4)).astype("<f4")


def samples(sizes=MODEL.vocab_sizes, columns=3):
    """Labels, dense values and ids as the files hold them."""
    dice = np.random.default_rng(SEED)
    labels = dice.integers(0, 2, SAMPLES).astype("<i4")
    dense = dice.normal(size=(SAMPLES, columns)).astype("<f4")
    return labels, dense, dice.integers(0, sizes, (SAMPLES, len(sizes))).astype("<i4")


def split(folder, sizes=MODEL.vocab_sizes, columns=3, ids=None):
    labels, dense, its_ids = samples(sizes, columns)
    its_ids = its_ids if ids is None else ids
    return write_split(folder, labels, dense, its_ids, sizes, num_dense=columns, dense_log=False)


@pytest.fixture(name="data", scope="module")
def data_folder(tmp_path_factory):
    return split(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(name="checkpoint", scope="module")
def one_rank(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("c") / "step-1", MODEL, ROWS, WEIGHTS)


def inputs_of_layers(dense, ids):
    """The input of each layer in float64, by name."""
    layers = {
        mlp: [(WEIGHTS[f"{mlp}_kernel_{n}"], WEIGHTS[f"{mlp}_bias_{n}"]) for n in range(2)]
        for mlp in ("bottom", "top")
    }
    tables = np.split(ROWS, np.cumsum(MODEL.vocab_sizes)[:-1])
    reference = ReferenceDLRM(tables, layers["bottom"], layers["top"])
    reference.logits(dense, ids)
    bottom, top = reference._bottom_values, reference._top_values
    return {"bottom_0": bottom[0], "bottom_1": bottom[1], "top_0": top[0], "top_1": top[1]}


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranges_are_those_of_the_float64_model(tmp_path, data, ranks, monkeypatch):
    monkeypatch.setattr(checkpoint_samples, "PIECE_SAMPLES", 64)
    monkeypatch.setattr(checkpoint_samples, "BLOCK_BYTES", 8)  # a few rows at a time
    path = write_checkpoint(tmp_path / "c", MODEL, ROWS, WEIGHTS, ranks=ranks, step=70)
    found = calibrate(path, data, samples=10**6, method="minmax")
    assert (found.model, found.step, found.samples) == (MODEL, 70, SAMPLES)
    _, dense, ids = samples()
    expected = inputs_of_layers(dense, ids)
    assert found.ranges.keys() == expected.keys()
    for layer, values in expected.items():
        np.testing.assert_allclose(found.ranges[layer].low, values.min(axis=0), atol=1e-5)
        np.testing.assert_allclose(found.ranges[layer].high, values.max(axis=0), atol=1e-5)


def test_a_part_of_the_samples_is_spread_over_all(data, checkpoint, monkeypatch):
    monkeypatch.setattr(checkpoint_samples, "PIECE_SAMPLES", 10)
    pieces = [(0, 8), (100, 108), (200, 209)]
    assert ModelSamples(data, MODEL).pieces(25) == pieces
    found = calibrate(checkpoint, data, samples=25, method="minmax")
    assert found.samples == 25
    _, dense, _ = samples()
    seen = np.concatenate([dense[start:stop] for start, stop in pieces])
    assert np.array_equal(found.ranges["bottom_0"].high, seen.max(axis=0))


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_the_file_keeps_every_bit(tmp_path, data, checkpoint, method, monkeypatch):
    monkeypatch.setattr(ranges, "HISTOGRAM_BINS", 150)
    found = calibrate(checkpoint, data, samples=100, method=method)
    for name in ("a", "b"):
        found.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = read_calibration(tmp_path / "a")
    found.check(WEIGHTS, MODEL)
    again.check(WEIGHTS, MODEL)
    for layer, kept in found.ranges.items():
        assert np.array_equal(kept, again.ranges[layer])
        assert again.ranges[layer].low.dtype == np.float32
    assert dataclasses.replace(again, ranges=found.ranges) == found


def test_it_fits_no_other_weights(data, checkpoint):
    found = calibrate(checkpoint, data, samples=50, method="minmax")
    other = {**WEIGHTS, "top_bias_1": WEIGHTS["top_bias_1"] + 1}
    for weights, model in (
        (other, MODEL),
        (WEIGHTS, dataclasses.replace(MODEL, vocab_sizes=(40, 1, 201))),
    ):
        with pytest.raises(ValueError, match="expected a calibration of this checkpoint's dense"):
            found.check(weights, model)


def test_the_command_takes_the_newest_checkpoint(tmp_path, data, checkpoint, capsys):
    folder = tmp_path / "checkpoints"
    for step in (5, 12):
        shutil.copytree(checkpoint, folder / f"step-{step:010d}")
    out = tmp_path / "out.json"
    assert serving.main(["calibrate", str(folder), str(data), str(out), "--samples=20"]) == 0
    assert capsys.readouterr().out == (
        f"{out}: ranges of 4 layers by minmax, seen on 20 samples with the weights of "
        f"{folder / 'step-0000000012'}\n"
    )
    read_calibration(out).check(WEIGHTS, MODEL)


def test_the_command_needs_a_folder_to_write_into(tmp_path, data, checkpoint, capsys):
    out = tmp_path / "nowhere" / "out.json"
    assert serving.main(["calibrate", str(checkpoint), str(data), str(out)]) == 1
    assert capsys.readouterr().err == (
        f"error: {out}: expected to write into a folder that exists, found none; make it first\n"
    )


def damage_file(path, how):
    content = json.loads(path.read_text())
    if how == "a digit":
        content["ranges"]["top_1"]["high"][0] += 0.5
    elif how == "another file":
        content = {"vocab_sizes": [1]}
    elif how == "cut":
        path.write_text(path.read_text()[:100])
        return
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a digit", "damaged: its CRC-32 is not the one that was written; make it with"),
        ("another file", "expected a calibration file, found another"),
        ("cut", "not valid JSON"),
    ],
)
def test_damage_is_found(tmp_path, data, checkpoint, how, message):
    path = tmp_path / "calibration.json"
    calibrate(checkpoint, data, samples=20, method="minmax").write(path)
    damage_file(path, how)
    with pytest.raises(ValueError, match=message) as caught:
        read_calibration(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file; make it with `python3 -m serving"):
        read_calibration(tmp_path / "none")


def test_data_must_fit(tmp_path, checkpoint):
    _, _, ids = samples()
    ids[7, 2] = 200
    cases = [
        ({"columns": 2}, "expected 3 dense columns, as the model has, found 2"),
        ({"sizes": (40, 1)}, "expected 3 tables, as the model has, found 2"),
        ({"sizes": (40, 1, 90)}, "expected 200 rows of table 2, as the model has, found 90"),
        ({"ids": ids}, "sample 7, table 2: expected an id from 0 to 199, found 200; correct"),
    ]
    for number, (changes, message) in enumerate(cases):
        folder = split(tmp_path / str(number), **changes)
        with pytest.raises(ValueError, match=message) as caught:
            calibrate(checkpoint, folder, samples=100, method="minmax")
        assert str(caught.value).startswith(f"{folder}: ")


def test_other_errors(tmp_path, data, checkpoint):
    with pytest.raises(ValueError, match="--samples: expected at least 1, found 0"):
        calibrate(checkpoint, data, samples=0, method="minmax")
    model = dataclasses.replace(MODEL, num_dense=None, bottom_mlp=None, top_mlp=None)
    tables = write_checkpoint(tmp_path / "tables", model, ROWS, {})
    with pytest.raises(ValueError, match="found tables alone"):
        calibrate(tables, data, samples=1, method="minmax")
