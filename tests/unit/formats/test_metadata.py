"""`metadata.json`: what is written, what is read, what is refused."""

from __future__ import annotations

import json
import resource

import pytest

from dlrm.formats.metadata import (
    Metadata,
    read_metadata,
    read_per_category_metadata,
    write_metadata,
)

SOK = {
    "vocab_sizes": [3, 5],
    "label_raw_type": "int32",
    "dense_raw_type": "int32",
    "category_raw_type": "int32",
    "dense_log": True,
}


def write(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "metadata.json").write_text(text)
    return folder


def test_round_trip_keeps_the_five_old_keys_as_they_were(tmp_path):
    description = Metadata((3, 5), "int32", "float32", "int32", False, 4, 1.5)
    write_metadata(tmp_path, description)
    content = json.loads((tmp_path / "metadata.json").read_text())
    old = {key: content[key] for key in SOK}
    assert old == {**SOK, "dense_raw_type": "float32", "dense_log": False}
    assert (content["num_dense"], content["dense_log_offset"]) == (4, 1.5)
    assert read_metadata(tmp_path) == description
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.json"]


def test_five_keys_are_enough(tmp_path):
    write(tmp_path, SOK)
    (tmp_path / "label.bin").write_bytes(bytes(4 * 6))
    (tmp_path / "dense.bin").write_bytes(bytes(4 * 6 * 7))
    description = read_metadata(tmp_path)
    assert description.num_dense == 7
    assert description.dense_log_offset == 3.0


@pytest.mark.parametrize(("label", "dense"), [(0, 8), (24, 25), (24, 0)])
def test_sizes_that_give_no_number_of_dense_columns(tmp_path, label, dense):
    write(tmp_path, SOK)
    (tmp_path / "label.bin").write_bytes(bytes(label))
    (tmp_path / "dense.bin").write_bytes(bytes(dense))
    with pytest.raises(ValueError, match=r"(label|dense)\.bin: expected .* found .*split_bin"):
        read_metadata(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metadata\.json: no such file; write it with"):
        read_metadata(tmp_path)
    write(tmp_path, SOK)
    with pytest.raises(FileNotFoundError, match=r"label\.bin: no such file"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("key", sorted(SOK))
def test_each_missing_key_is_named(tmp_path, key):
    content = {name: value for name, value in SOK.items() if name != key}
    write(tmp_path, {**content, "num_dense": 2})
    with pytest.raises(ValueError, match=rf"metadata\.json: missing {key}; write it"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_sizes", []),
        ("vocab_sizes", 3),
        ("vocab_sizes", [3, 0]),
        ("vocab_sizes", [3, True]),
        ("vocab_sizes", [3, "5"]),
        ("vocab_sizes", [3, 2**31 + 1]),
        ("label_raw_type", "int64"),
        ("dense_raw_type", None),
        ("category_raw_type", ["int32"]),
        ("dense_log", "True"),
        ("dense_log", 1),
        ("num_dense", 0),
        ("num_dense", 2.0),
        ("dense_log_offset", "3"),
        ("dense_log_offset", float("nan")),
    ],
)
def test_bad_values_are_named_in_one_line(tmp_path, key, value):
    write(tmp_path, {**SOK, "num_dense": 2, key: value})
    with pytest.raises(ValueError, match=rf"metadata\.json: {key}: expected .*found") as error:
        read_metadata(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', '{"a": \n\n 1,}', "[" * 100_000])
def test_malformed_json(tmp_path, text):
    write(tmp_path, text)
    with pytest.raises(
        ValueError, match=r"metadata\.json: (not valid JSON|expected a JSON obj)"
    ) as e:
        read_metadata(tmp_path)
    assert "\n" not in str(e.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "metadata.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_metadata(tmp_path)


def test_per_category_folder_needs_vocab_sizes_only(tmp_path):
    write(tmp_path, {"vocab_sizes": [3, 5]})
    (tmp_path / "label.bin").write_bytes(bytes(6))
    (tmp_path / "dense.bin").write_bytes(bytes(2 * 6 * 7))
    assert read_per_category_metadata(tmp_path) == ((3, 5), 7)
    (tmp_path / "category_0.bin").write_bytes(bytes(6))
    with pytest.raises(ValueError, match="--use_splited_dataset"):
        read_metadata(tmp_path)
    write(tmp_path, {"sizes": [3, 5]})
    with pytest.raises(ValueError, match=r"metadata\.json: missing vocab_sizes"):
        read_per_category_metadata(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    write(tmp_path, SOK)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_metadata(tmp_path, Metadata((9,), "int32", "int32", "int32", True, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads((tmp_path / "metadata.json").read_text()) == SOK
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.json"]
