"""Checkpoints on disk: files, manifest, choice, refusal. On many ranks: see test_resume."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from dlrm.checkpoint import directory, state
from dlrm.checkpoint.manifest import DENSE_FILE, ModelShape, Position, read_manifest, tables_file
from dlrm.checkpoint.resume import Resumed, resume
from dlrm.checkpoint.safetensors_file import (
    BLOCK_BYTES,
    TensorReader,
    TensorWriter,
    digest_file,
    write_tensors,
)
from dlrm.checkpoint.save import SAVE_POINTS, Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.checkpoint.table_reader import TableReader
from dlrm.distributed.collective import Collective
from dlrm.formats.json_files import sum_of_json

VOCAB_SIZES, WIDTH = (40, 1, 700), 6
SHAPE = ModelShape(3, VOCAB_SIZES, WIDTH, (8, WIDTH), (4, 1))
RUN = RunRecord(SHAPE, {"global_batch_size": 8, "lr": 0.5}, {"training": "a", "test": "b"})


class Rows:
    """All rows of the tables, in memory."""

    state = ()  # plain SGD remembers nothing
    dynamic = None

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def read_rows(self, first: int, last: int) -> np.ndarray:
        return self.values[first:last].copy()

    def write_rows(self, rows: np.ndarray, values: np.ndarray) -> None:
        self.values[rows] = values


def made(seed: int) -> State:
    print("seed", seed)
    rng = np.random.default_rng(seed)
    dense = {
        "top_kernel_0": tf.Variable(rng.random((5, 4), np.float32)),
        "top_bias_0": tf.Variable(rng.random(4, np.float32)),
    }
    return State(dense, Rows(rng.random((sum(VOCAB_SIZES), WIDTH), np.float32)))


def values(state: State) -> list[np.ndarray]:
    assert isinstance(state.tables, Rows)
    return [*(variable.numpy() for variable in state.dense.values()), state.tables.values.copy()]


def assert_equal(found: State, expected: State) -> None:
    for value, other in zip(values(found), values(expected)):
        np.testing.assert_array_equal(value, other)


def save(directory: Path, *steps: int, keep: int = 10, run: RunRecord = RUN) -> None:
    """Checkpoints whose state follows from the step."""
    checkpoints = Checkpoints(directory, Collective(), run, keep=keep)
    for step in steps:
        assert checkpoints.save(made(step), Position(step, 1, 8 * step))


def load(
    option: str, directory: Path | None, run: RunRecord = RUN, **settings: Any
) -> tuple[Resumed | None, State, list[str]]:
    state, lines = made(0), list[str]()
    found = resume(option, directory, run, state, Collective(), on_message=lines.append, **settings)
    return found, state, lines


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


# Files of tensors


def test_a_file_is_what_the_format_says(tmp_path: Path) -> None:
    """Parsed by hand: 8 bytes of length, JSON, then the values one after the other."""
    first, second = np.arange(6, dtype="<f4").reshape(2, 3), np.arange(4, dtype="<i8")
    write_tensors(tmp_path / "a", {"first": first, "second": second})
    data = (tmp_path / "a").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert (8 + length) % 64 == 0
    assert json.loads(data[8 : 8 + length]) == {
        "first": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "second": {"dtype": "I64", "shape": [4], "data_offsets": [24, 56]},
    }
    assert data[8 + length :] == first.tobytes() + second.tobytes()


def test_files_whose_values_begin_elsewhere_are_read(tmp_path: Path) -> None:
    """As those of earlier versions and of other programs, which pad to 8 and add metadata."""
    path, rows = tmp_path / "a", np.arange(12, dtype="<f4").reshape(4, 3)
    save_file({"rows": rows}, path, metadata={"format": "np"})
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert (8 + length) % 64
    with TensorReader(path, digest_file(path)) as reader:
        assert reader.tensors == {"rows": (rows.dtype, (4, 3))}
        np.testing.assert_array_equal(reader.read("rows", 1, 3), rows[1:3])


@pytest.mark.parametrize("rows", [0, 1, BLOCK_BYTES // 24 - 3, BLOCK_BYTES // 24, 3 * BLOCK_BYTES])
def test_any_ranges_of_any_pieces(tmp_path: Path, rows: int) -> None:
    print("seed", rows)
    rng = np.random.default_rng(rows)
    expected = rng.random((rows, WIDTH), np.float32)
    with TensorWriter(tmp_path / "a", {"rows": (expected.dtype, expected.shape)}) as writer:
        done = 0
        while done < rows:
            piece = int(rng.integers(1, rows + 1))
            writer.write(expected[done : done + piece])
            done += piece
        digest = writer.finish()
    with TensorReader(tmp_path / "a", digest) as reader:
        np.testing.assert_array_equal(reader.read("rows"), expected)
        for _ in range(10):
            first, last = sorted(rng.integers(0, rows + 1, 2))
            np.testing.assert_array_equal(reader.read("rows", first, last), expected[first:last])
        reader.read_bytes(0, digest.size)


def test_each_flipped_byte_is_found_with_its_place(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "a", {"x": np.zeros(3 * BLOCK_BYTES // 4, "<f4")})
    print("seed 5")
    for offset in [0, 9, digest.size - 1, *np.random.default_rng(5).integers(0, digest.size, 8)]:
        flip(tmp_path / "a", int(offset))
        block = offset // BLOCK_BYTES * BLOCK_BYTES
        end = min(block + BLOCK_BYTES, digest.size)
        with (
            pytest.raises(ValueError, match=f"a: damaged between offsets {block} and {end}"),
            TensorReader(tmp_path / "a", digest) as reader,
        ):
            reader.read_bytes(0, digest.size)
        flip(tmp_path / "a", int(offset))


def test_a_damaged_block_leaves_the_others_readable(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "a", {"x": np.ones(3 * BLOCK_BYTES // 4, "<f4")})
    flip(tmp_path / "a", digest.size - 1)
    with TensorReader(tmp_path / "a", digest) as reader:
        assert reader.read("x", 0, 1000).sum() == 1000


# Saving


def test_what_was_saved_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "PIECE_BYTES", 1000)
    save(tmp_path, 3)
    found, loaded, _ = load("auto", tmp_path)
    assert found == Resumed(tmp_path / "step-0000000003", Position(3, 1, 24))
    assert_equal(loaded, made(3))


def test_the_newest_stay(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 15, 20, keep=2)
    assert [path.name for path in directory.finished(tmp_path)] == [
        "step-0000000015",
        "step-0000000020",
    ]
    assert directory.finished(tmp_path / "nowhere") == []


def test_a_step_is_written_once(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, Collective(), RUN, keep=2)
    assert checkpoints.save(made(4), Position(4, 0, 0))
    assert not checkpoints.save(made(4), Position(4, 0, 0))
    del checkpoints
    found, _, _ = load("auto", tmp_path)
    assert found
    again = Checkpoints(tmp_path, Collective(), RUN, keep=2)
    again.loaded(found.path)
    assert not again.save(made(4), Position(4, 0, 0))


def test_the_moments_of_a_save_come_in_order(tmp_path: Path) -> None:
    points = list[str]()
    checkpoints = Checkpoints(tmp_path, Collective(), RUN, keep=1, on_save_point=points.append)
    checkpoints.save(made(1), Position(1, 0, 0))
    assert tuple(points) == SAVE_POINTS


def test_leftovers_go(tmp_path: Path) -> None:
    for name in (".unfinished-step-0000000004", ".removed-step-0000000003"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dense.safetensors").touch()
    save(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step-0000000005"]


def test_another_run_in_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "LOCK_SECONDS", 0.2)
    first = Checkpoints(tmp_path, Collective(), RUN, keep=1)
    with pytest.raises(ValueError, match="another run is writing.*--checkpoint_dir"):
        Checkpoints(tmp_path, Collective(), RUN, keep=1)
    assert first


# What cannot be loaded


def test_nothing_there_begins_anew(tmp_path: Path) -> None:
    for option in ("auto", "none"):
        assert load(option, tmp_path)[0] is None
        assert load(option, None)[0] is None


def damaged(kind: str, path: Path) -> str:
    """Damages a checkpoint; gives what the message must say."""
    tables = path / tables_file(0, 1)
    if kind == "flipped":
        flip(tables, 400)
        return rf"{tables.name}: damaged between offsets 0 and \d+"
    if kind == "flipped dense":
        flip(path / DENSE_FILE, 200)
        return f"{DENSE_FILE}: damaged between offsets 0 and"
    if kind == "truncated":
        size = tables.stat().st_size
        os.truncate(tables, size - 1)
        return f"{tables.name}: expected {size} bytes, found {size - 1}: it ends at offset"
    if kind == "missing":
        tables.unlink()
        return f"{tables.name}: no such file"
    if kind == "manifest":
        text = (path / "manifest.json").read_text()
        (path / "manifest.json").write_text(text.replace('"step": 10', '"step": 11'))
        return "manifest.json: damaged: its CRC-32"
    assert kind == "cut manifest"
    os.truncate(path / "manifest.json", 100)
    return "manifest.json: damaged"


KINDS = ["flipped", "flipped dense", "truncated", "missing", "manifest", "cut manifest"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_and_auto_takes_the_one_before(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 5, 10)
    newest = tmp_path / "step-0000000010"
    expected = damaged(kind, newest)
    with pytest.raises(ValueError, match=expected):
        load(str(newest), None)
    found, loaded, lines = load("auto", tmp_path)
    assert found == Resumed(tmp_path / "step-0000000005", Position(5, 1, 40))
    assert_equal(loaded, made(5))
    assert any("passed over a damaged checkpoint" in line for line in lines)
    assert "resumed from" in lines[-1]
    # Training comes to the same step again, and replaces the damaged one.
    save(tmp_path, 10)
    found, loaded, _ = load("auto", tmp_path)
    assert found
    assert found.position.step == 10
    assert_equal(loaded, made(10))


def test_no_whole_one_left_is_no_new_beginning(tmp_path: Path) -> None:
    save(tmp_path, 5, 10)
    for path in directory.finished(tmp_path):
        damaged("flipped", path)
    with pytest.raises(ValueError, match="no whole checkpoint.*0000000010.*0000000005.*--resume"):
        load("auto", tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"vocab_sizes": (40, 2, 701)}, "rows of table 1: checkpoint 1, run 2; rows of table 2"),
        ({"vocab_sizes": (40, 1)}, "tables: checkpoint 3, run 2"),
        ({"embedding_dim": 8, "bottom_mlp": (8, 8)}, "embedding_dim: checkpoint 6, run 8"),
        ({"top_mlp": (5, 1)}, "top_mlp: checkpoint 4-1, run 5-1"),
        ({"num_dense": 4}, "num_dense: checkpoint 3, run 4"),
        ({"interaction": "sum"}, "interaction: checkpoint dot, run sum;"),
        (
            {"interaction": "dcnv2", "cross_layers": 3, "cross_rank": 4},
            "another run: interaction: checkpoint dot, run dcnv2;",
        ),
        ({"architecture": "HSTU", "num_dense": 4}, "architecture: checkpoint DLRM, run HSTU;"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    save(tmp_path, 5)
    other = dataclasses.replace(RUN, model=dataclasses.replace(SHAPE, **change))
    with pytest.raises(ValueError, match=expected):
        load("auto", tmp_path, other)


def test_a_manifest_of_before_there_were_other_architectures_is_a_dlrms(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path = tmp_path / "step-0000000005" / "manifest.json"
    content = json.loads(path.read_text())
    del content["crc32"]
    for field in ("architecture", "interaction", "cross_layers", "cross_rank"):
        del content["model"][field]
    path.write_text(json.dumps({**content, "crc32": sum_of_json(content)}))
    found, loaded, _ = load("auto", tmp_path)
    assert found
    assert_equal(loaded, made(5))


def test_changed_data_is_refused_unless_told(tmp_path: Path) -> None:
    save(tmp_path, 5)
    other = dataclasses.replace(RUN, data={"training": "other", "test": "b"})
    with pytest.raises(ValueError, match="the training data changed.*--ignore_data_change"):
        load("auto", tmp_path, other)
    found, _, _ = load("auto", tmp_path, other, ignore_data_change=True)
    assert found


def test_another_global_batch_is_refused_and_other_flags_are_named(tmp_path: Path) -> None:
    save(tmp_path, 5)
    other = dataclasses.replace(
        RUN,
        settings={"global_batch_size": 16, "lr": 0.25},
        affect_training=frozenset({"lr"}),
    )
    with pytest.raises(ValueError, match="global_batch_size: checkpoint 8, run 16"):
        load("auto", tmp_path, other, pinned=["global_batch_size"])
    lines = load("auto", tmp_path, other)[2]
    named = [line for line in lines if line.startswith("--")]
    assert named == ["--lr was 0.5 when the checkpoint was written, now 0.25"]


def test_what_would_mix_two_runs_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5, 10)
    with pytest.raises(ValueError, match="--resume=none would mix"):
        load("none", tmp_path)
    with pytest.raises(ValueError, match="step-0000000010: later than --resume"):
        load(str(tmp_path / "step-0000000005"), tmp_path)
    found, loaded, _ = load(str(tmp_path / "step-0000000005"), tmp_path / "other")
    assert found
    assert_equal(loaded, made(5))
    newest, _, _ = load(str(tmp_path), None)
    assert newest
    assert newest.position.step == 10
    with pytest.raises(ValueError, match="expected a checkpoint, found no manifest.json"):
        load(str(tmp_path / "other"), None)


# Other numbers of ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 800])
def test_rows_are_read_by_key_whoever_wrote_them(tmp_path: Path, ranks: int) -> None:
    rows = made(9).tables.read_rows(0, sum(VOCAB_SIZES))
    save(tmp_path, 9)
    path = tmp_path / "step-0000000009"
    files = {
        tables_file(rank, ranks): write_tensors(
            path / f"{tables_file(rank, ranks)}.new", {"rows": rows[rank::ranks]}
        )
        for rank in range(ranks)
    }
    for name in files:
        (path / f"{name}.new").rename(path / name)
    manifest = dataclasses.replace(read_manifest(path), ranks=ranks, files=files)
    print("seed", ranks)
    rng = np.random.default_rng(ranks)
    with TableReader(path, manifest) as reader:
        np.testing.assert_array_equal(reader.read_keys(0, len(rows)), rows)
        for _ in range(5):
            first, last = sorted(rng.integers(0, len(rows) + 1, 2))
            np.testing.assert_array_equal(reader.read_keys(first, last), rows[first:last])
