"""The description of an artifact, its checksums, and tensors that are mapped."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlrm.checkpoint.manifest import ModelShape
from dlrm.checkpoint.safetensors_file import ALIGNMENT, BLOCK_BYTES, parse_header, write_tensors
from dlrm.formats.packed_ids import plan
from serving.artifact import Artifact, map_tensors, read_artifact, verify_artifact

SIZES = (300, 7)
TENSORS = {
    "f32": np.arange(6, dtype="f4").reshape(2, 3),
    "i8": np.arange(-3, 4, dtype="i1"),
    "f16": np.ones((2, 2), "f2"),
    "u8": np.arange(5, dtype="u1"),
    "i32": np.arange(3, dtype="i4"),
    "i64": np.arange(3, dtype="i8"),
}


@pytest.fixture(name="artifact")
def small_artifact(tmp_path):
    files = {
        "a.safetensors": write_tensors(tmp_path / "a.safetensors", TENSORS),
        "b.safetensors": write_tensors(
            tmp_path / "b.safetensors", {"x": np.ones(BLOCK_BYTES, np.float32)}
        ),
    }
    model = ModelShape(3, SIZES, 4, (8, 4), (16, 1))
    rules = {"rules": "dlrm", "moduli": [None, 40], "lowest_dense": [0, 0, 0]}
    made = Artifact(tmp_path, model, "int8", "float32", 12, False, plan(SIZES), rules, files)
    made.write()
    return made


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_what_is_written_is_read(artifact):
    assert read_artifact(artifact.folder) == artifact
    assert artifact.rows == 307
    verify_artifact(artifact)


def test_equal_artifacts_have_equal_descriptions(artifact):
    before = (artifact.folder / "artifact.json").read_bytes()
    turned = dict(reversed(artifact.files.items()))
    dataclasses.replace(artifact, files=turned).write()
    assert (artifact.folder / "artifact.json").read_bytes() == before


def test_no_artifact_no_json_and_a_changed_word_are_refused(artifact, tmp_path):
    with pytest.raises(ValueError, match=r"expected an artifact, found no artifact.json in it"):
        read_artifact(tmp_path / "absent")
    path = artifact.folder / "artifact.json"
    text = path.read_text()
    for broken, what in (
        (text.replace('"step": 12', '"step": 13'), "damaged: its CRC-32"),
        (text[:40], "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "damaged: missing or malformed 'crc32'"),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match=what):
            read_artifact(artifact.folder)


def test_another_format_and_an_unknown_type_are_refused(artifact, monkeypatch):
    dataclasses.replace(artifact, tables="int4").write()
    with pytest.raises(ValueError, match="tables: expected one of float32, .*found 'int4'"):
        read_artifact(artifact.folder)
    monkeypatch.setattr("serving.artifact.FORMAT", 2)
    artifact.write()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="expected format 1, found 2"):
        read_artifact(artifact.folder)


def test_a_flipped_bit_is_named_by_file_and_offset(artifact):
    path = artifact.folder / "b.safetensors"
    flip(path, 2 * BLOCK_BYTES + 100)
    verify_artifact(artifact, ["a.safetensors"])
    for names in (None, ["b.safetensors"]):
        start, end = 2 * BLOCK_BYTES, 3 * BLOCK_BYTES
        with pytest.raises(ValueError, match=f"{path}: damaged between offsets {start} and {end}"):
            verify_artifact(artifact, names)


def test_a_cut_and_a_missing_file_are_named(artifact):
    path = artifact.folder / "b.safetensors"
    os.truncate(path, 5000)
    with pytest.raises(ValueError, match=rf"{path}: expected \d+ bytes, found 5000"):
        verify_artifact(artifact)
    with pytest.raises(ValueError, match=f"{path}: expected a safetensors file, found the end"):
        map_tensors(path)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path}: No such file"):
        verify_artifact(artifact)


def test_tensors_are_mapped_in_place(artifact):
    path = artifact.folder / "a.safetensors"
    mapped = map_tensors(path)
    assert mapped.keys() == TENSORS.keys() == load_file(path).keys()
    for name, value in TENSORS.items():
        assert mapped[name].dtype == value.dtype
        assert mapped[name].flags.aligned
        np.testing.assert_array_equal(mapped[name], value)
        np.testing.assert_array_equal(load_file(path)[name], value)
    assert mapped["f32"].ctypes.data % ALIGNMENT == 0
    with pytest.raises(ValueError, match="read-only"):
        mapped["f32"][0] = 1


def test_the_values_begin_at_a_cache_line(artifact):
    for name in artifact.files:
        content = (artifact.folder / name).read_bytes()
        length = int.from_bytes(content[:8], "little")
        places = parse_header(content[8 : 8 + length])
        assert min(start for _, start in places.values()) == 8 + length
        assert (8 + length) % 64 == 0


def test_files_of_other_writers_are_mapped(tmp_path):
    save_file(TENSORS, tmp_path / "other.safetensors", metadata={"format": "np"})
    mapped = map_tensors(tmp_path / "other.safetensors")
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(mapped[name], value)


@pytest.mark.parametrize(
    "content", [b"", b"123", b"x" * 100, b"\x02" + bytes(7) + b"[]", bytes(64)]
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: expected a safetensors file"):
        map_tensors(path)


def test_the_description_is_plain_json(artifact):
    content = json.loads((artifact.folder / "artifact.json").read_text())
    assert content["format"] == 1
    assert content["model"]["vocab_sizes"] == [300, 7]
    assert content["packed_ids"] == {"words": 1, "fields": [[0, 16, 16], [0, 8, 8]]}
    assert content["files"]["a.safetensors"].keys() == {"bytes", "block_bytes", "crc32"}
