"""Exports of small checkpoints: every file beside the weights that went in."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from dlrm.checkpoint import export as checkpoint_export
from dlrm.checkpoint.manifest import DENSE_FILE, ModelShape, tables_file
from serving import table_files
from serving.artifact import DENSE_TYPES, read_artifact, verify_artifact
from serving.commands import export as command
from serving.export import ExportOptions, export
from serving.row_encoding import TABLE_TYPES
from serving.row_frequencies import write_counts
from tests.support.checkpoints import random_weights, write_checkpoint

MODEL = ModelShape(3, (500, 1, 9, 60), 6, (5, 6), (8, 1))
KEYS = sum(MODEL.vocab_sizes)
SETTINGS = {"lr": 2.0, "seed": 3, "checkpoint_dir": "there", "run_dir": None, "epochs": 5}
DATA = {"training": "1a2b", "test": "3c4d"}
WEIGHTS = random_weights(MODEL, seed=4)


def ignore(line):
    """Takes the lines about files."""


@pytest.fixture(name="rows")
def random_rows():
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    rows = np.random.default_rng(seed).normal(size=(KEYS, MODEL.embedding_dim)).astype("<f4")
    rows[501:510] = 0.25  # a table of one value
    return rows


def checkpoint(folder, rows, **more):
    return write_checkpoint(folder, MODEL, rows, WEIGHTS, settings=SETTINGS, data=DATA, **more)


def make(tmp_path, rows, name="out", *, ranks=2, **options):
    """Exports a checkpoint of these rows; returns the artifact's folder."""
    path = tmp_path / f"c{ranks}"
    if not path.exists():
        checkpoint(path, rows, ranks=ranks)
    made = export(path, tmp_path / name, ExportOptions(**options, saved_model=False), ignore)
    assert made == read_artifact(tmp_path / name)
    return tmp_path / name


def frequencies(tmp_path, seed=6):
    """A file of counts with many ties; returns it and the keys in the order to expect."""
    counts = np.random.default_rng(seed).integers(0, 30, KEYS)
    write_counts(tmp_path / "counts", counts, MODEL.vocab_sizes)
    return tmp_path / "counts", sorted(range(KEYS), key=lambda key: (-counts[key], key))


def decoded(folder, tables):
    """The rows of an artifact in order of key, by the format's own words, in float64."""
    content = load_file(folder / "tables.safetensors")
    rows = content["rows"]
    order = folder / "row_order.safetensors"
    if order.exists():
        rows = rows[load_file(order)["positions"]]
    if tables == "int8":
        scales = np.repeat(content["table_scales"], MODEL.vocab_sizes)
        return rows * scales.astype(np.float64)[:, None]
    if tables == "int8_rows":
        tail = rows[:, -8:].copy().view("<f4").astype(np.float64)
        return rows[:, :-8] * tail[:, :1] + tail[:, 1:]
    return rows.astype(np.float64)


def bounds(tables, rows):
    """The largest error that the type allows each value."""
    if tables == "int8":
        ends = np.cumsum(MODEL.vocab_sizes)
        largest = [abs(table).max() for table in np.split(rows, ends[:-1])]
        return np.repeat(largest, MODEL.vocab_sizes)[:, None] / 127.5 * 0.502
    if tables == "int8_rows":
        return (rows.max(1) - rows.min(1))[:, None] / 255 * 0.501 + 1e-7
    # Half a step, and below the normal numbers steps no longer shrink.
    return np.maximum(abs(rows) * 2.0**-11, 2.0**-25) * (tables == "float16")


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("tables", TABLE_TYPES)
def test_every_row_is_there(tmp_path, rows, tables, ordered, monkeypatch):
    monkeypatch.setattr(checkpoint_export, "PIECE_BYTES", 1000)
    monkeypatch.setattr(checkpoint_export, "MOST_BYTES", 1)
    monkeypatch.setattr(table_files, "STRETCH_BYTES", 700)
    counts, by_use = frequencies(tmp_path)
    folder = make(tmp_path, rows, tables=tables, row_frequencies=counts if ordered else None)
    assert np.all(abs(decoded(folder, tables) - rows) <= bounds(tables, rows))
    artifact = read_artifact(folder)
    verify_artifact(artifact)
    assert (artifact.tables, artifact.dense) == (tables, "float32")
    assert (artifact.model, artifact.step) == (MODEL, 12)
    assert (artifact.row_order, artifact.dictionary) == (ordered, None)
    if ordered:
        positions = load_file(folder / "row_order.safetensors")["positions"]
        assert positions.dtype == np.int32
        assert np.argsort(positions).tolist() == by_use
    names = {path.name for path in folder.iterdir()}
    assert names == {*artifact.files, "artifact.json"}


def test_the_dense_weights_are_the_checkpoints(tmp_path, rows):
    dense = load_file(make(tmp_path, rows) / "dense.safetensors")
    assert dense.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(dense[name], value)


@pytest.mark.parametrize("tables", ["float32", "int8"])
def test_any_number_of_ranks_gives_the_same_bytes(tmp_path, rows, tables):
    counts, _ = frequencies(tmp_path)
    folders = [
        make(tmp_path, rows, f"out{ranks}", ranks=ranks, tables=tables, row_frequencies=counts)
        for ranks in (1, 2, 3)
    ]
    for path in folders[0].iterdir():
        for other in folders[1:]:
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_an_optimizers_state_stays_behind(tmp_path, rows):
    plain = make(tmp_path, rows)
    state = {"adagrad.accumulator": np.ones((KEYS, 1), np.float32)}
    dense = {**WEIGHTS, "top_bias_0.m": np.zeros(3, np.float32)}
    path = write_checkpoint(
        tmp_path / "s", MODEL, rows, dense, settings=SETTINGS, data=DATA, state=state
    )
    export(path, tmp_path / "out2", ExportOptions(saved_model=False), ignore)
    for file in plain.iterdir():
        assert file.read_bytes() == (tmp_path / "out2" / file.name).read_bytes()


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "options", "what"),
    [
        ("nan", {}, "table 2, id 4, value 1: expected a finite value, found nan"),
        ("nan", {"tables": "int8"}, "table 2, id 4, value 1: expected a finite value, found nan"),
        ("big", {"tables": "float16"}, "table 3, id 59, value 5: expected a magnitude up to 65504"),
        ("tables", {}, rf"{tables_file(1, 2)}: damaged between offsets 0 and \d+"),
        ("dense", {}, rf"{DENSE_FILE}: damaged between offsets 0 and \d+"),
        ("none", {}, "expected a model, found tables alone"),
        ("shape", {}, r"expected top_kernel_1 of shape \[8, 1\], found \(9, 1\)"),
        ("", {"dense": "int8"}, "--dense=int8: expected a calibration, found none"),
        ("", {"calibration": "x"}, "--calibration: expected with --dense=int8 alone"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(tmp_path, rows, spoil, options, what):
    dense = dict(WEIGHTS)
    if spoil == "nan":
        rows[505, 1] = np.nan
    if spoil == "big":
        rows[KEYS - 1, 5] = 65520
    if spoil == "shape":
        dense["top_kernel_1"] = np.ones((9, 1), np.float32)
    path = tmp_path / "c"
    write_checkpoint(path, MODEL, rows, {} if spoil == "none" else dense, ranks=2)
    if spoil == "tables":
        flip(path / tables_file(1, 2), 3000)
    if spoil == "dense":
        flip(path / DENSE_FILE, 1200)
    with pytest.raises(ValueError, match=what) as raised:
        export(path, tmp_path / "out", ExportOptions(**options, saved_model=False), ignore)
    assert str(raised.value).count("\n") == 0
    assert [left.name for left in tmp_path.iterdir()] == ["c"]


def test_nothing_is_overwritten(tmp_path, rows):
    folder = make(tmp_path, rows)
    before = (folder / "artifact.json").read_bytes()
    with pytest.raises(ValueError, match=f"{folder}: already exists; remove it"):
        make(tmp_path, rows)
    assert (folder / "artifact.json").read_bytes() == before


def test_what_a_killed_export_left_is_removed(tmp_path, rows):
    left = tmp_path / ".unfinished-out"
    (left / "saved_model").mkdir(parents=True)
    (left / "saved_model" / "a").touch()
    (left / "tables.safetensors").touch()
    folder = make(tmp_path, rows)
    verify_artifact(read_artifact(folder))
    assert not left.exists()


def test_counts_of_another_model_are_refused(tmp_path, rows):
    sizes = (500, 2, 9, 60)
    write_counts(tmp_path / "counts", np.zeros(sum(sizes), np.int64), sizes)
    with pytest.raises(ValueError, match=r"counts: table 1: expected 1, found 2; make it with"):
        make(tmp_path, rows, row_frequencies=tmp_path / "counts")


def test_the_flags_know_every_type():
    assert command._TABLE_TYPES == TABLE_TYPES
    assert command._DENSE_TYPES == DENSE_TYPES


def test_the_card_tells_shape_size_and_cost(tmp_path, rows):
    folder = make(tmp_path, rows, tables="int8")
    card = json.loads((folder / "model_card.json").read_text())
    assert card["model"]["rows"] == KEYS
    sizes = {"bottom": 3 * 5 + 5 + 5 * 6 + 6, "top": 16 * 8 + 8 + 8 + 1}
    assert card["model"]["parameters"] == {"tables": KEYS * 6, **sizes}
    assert card["stored"]["mlp_bytes"] == {mlp: 4 * size for mlp, size in sizes.items()}
    assert card["stored"]["row_bytes_by_type"] == {
        "float32": KEYS * 24, "float16": KEYS * 12, "int8": KEYS * 6, "int8_rows": KEYS * 14,
    }  # fmt: skip
    assert card["training"]["settings"] == {"seed": 3, "lr": 2.0}
    assert card["training"]["data"] == DATA
    assert card["training"]["evaluation"] is None
    assert card["cost"]["quality"] is None
    error = abs(decoded(folder, "int8") - rows)
    cost = card["cost"]["tables"]
    assert cost["largest_error"] == pytest.approx(error.max(), rel=1e-3)
    assert cost["mean_error"] == pytest.approx(error.mean(), rel=1e-3)
    assert cost["largest_magnitude"] == pytest.approx(abs(rows).max())
    assert cost["by_table"][2]["mean"] == pytest.approx(error[501:510].mean(), rel=1e-3, abs=1e-9)
    text = (folder / "model_card.md").read_text()
    for words in (
        "from 3 dense features and 4 ids, after 12 steps",
        "570 rows of 6",
        "changed their values by at most",
        "|     0 |  500 |",
        "- `lr`: `2.0`",
        "- `training`: `1a2b`",
    ):
        assert words in text
    assert str(tmp_path) not in text
    exact = json.loads((make(tmp_path, rows, "exact") / "model_card.json").read_text())
    assert exact["cost"]["tables"]["largest_error"] == 0


def events(path, *lines):
    path.mkdir(exist_ok=True)
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (path / "events.jsonl").write_text(text)


def test_the_card_quotes_the_runs_own_evaluation(tmp_path, rows):
    run = tmp_path / "run"
    figures = {"auc": 0.75, "log_loss": 0.5, "normalised_entropy": 0.875, "samples": 999}
    settings = {**SETTINGS, "run_dir": str(run)}
    path = write_checkpoint(tmp_path / "c", MODEL, rows, WEIGHTS, settings=settings)
    start = {"event": "start", "step": 0, "settings": {**settings, "epochs": 1}}
    good = {"event": "evaluation", "step": 12, "seconds": 3.5, **figures}
    others = {**good, "auc": 0.5}

    def card(name):
        export(path, tmp_path / name, ExportOptions(saved_model=False), ignore)
        return json.loads((tmp_path / name / "model_card.json").read_text())["training"]

    events(run, start, {**others, "step": 11}, '{"event": "evalu', good, {**others, "step": 13})
    assert card("a")["evaluation"] == figures
    assert "0.750000" in (tmp_path / "a" / "model_card.md").read_text()
    events(run, start, good, {**start, "settings": {**settings, "lr": 1.0}}, others)
    assert card("b")["evaluation"] == figures
    events(run, {**start, "settings": {**settings, "lr": 1.0}}, others)
    assert card("c2")["evaluation"] is None
