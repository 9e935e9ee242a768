"""Checkpoints made of what `sok.dump` writes, from files laid out by hand."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from dlrm.checkpoint import import_sok as sok_dump
from dlrm.checkpoint.__main__ import main
from dlrm.checkpoint.directory import checkpoint_name
from dlrm.checkpoint.manifest import ModelShape, Position, read_manifest
from dlrm.checkpoint.resume import resume
from dlrm.checkpoint.safetensors_file import allocate
from dlrm.checkpoint.state import MisfitError, RunRecord, State
from dlrm.checkpoint.table_reader import TableReader
from dlrm.distributed.collective import Collective
from tests.support.checkpoints import ArrayTables, peak_megabytes
from tests.support.processes import run

SIZES, WIDTH = (7, 1, 500, 12), 8
CODES = {
    "int32": 0, "int64": 1, "uint32": 2, "uint64": 3, "float16": 4, "float32": 5, "float64": 6,
}  # fmt: skip


def write_file(path: Path, kind: int, values: np.ndarray) -> None:
    """A header, 256 + 4 + 32 + 4 bytes, and the values."""
    header = b" " * 256 + kind.to_bytes(4, "big") + b" " * 32
    path.write_bytes(header + CODES[values.dtype.name].to_bytes(4, "big") + values.tobytes())


def write_dump(folder: Path, name: str, keys: np.ndarray, rows: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    write_file(folder / f"{name}-key", 0, keys)
    write_file(folder / f"{name}-weight", 1, rows)
    return folder


def shuffled(size: int, width: int = WIDTH):
    """Keys in random order, and a row for each; float16 holds the values exactly."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    dice = np.random.default_rng(seed)
    return dice.permutation(size), dice.integers(-2000, 2000, (size, width)).astype(np.float32)


def imported(out: Path) -> np.ndarray:
    """All rows of the checkpoint in a folder."""
    path = out / checkpoint_name(0)
    manifest = read_manifest(path)
    assert manifest.position == Position(0, 0, 0)
    with TableReader(path, manifest) as reader:
        return reader.read_keys(0, reader.keys)


@pytest.mark.parametrize("key_type", ["int64", "uint64", "int32", "uint32"])
@pytest.mark.parametrize("weight_type", ["float32", "float16", "float64"])
@pytest.mark.parametrize("at_once", [1 << 13, 7])
def test_a_fused_variable_in_any_order(tmp_path, monkeypatch, key_type, weight_type, at_once):
    monkeypatch.setattr(sok_dump, "_MOVED_ROWS", at_once)
    monkeypatch.setattr(sok_dump, "_CHECKED_KEYS", at_once)
    keys, rows = shuffled(sum(SIZES))
    dump = write_dump(tmp_path / "d", "v", keys.astype(key_type), rows.astype(weight_type))
    # Slots have files of their own, which are none of ours.
    write_file(dump / "v-Adagrad-accumulator", 2, rows)
    (tmp_path / "metadata.json").write_text(json.dumps({"vocab_sizes": SIZES}))
    words = ["import-sok", str(dump), str(tmp_path / "out")]
    assert main([*words, "--metadata", str(tmp_path / "metadata.json")]) == 0
    expected = np.empty_like(rows)
    for key, row in zip(keys, rows):
        expected[key] = row
    np.testing.assert_array_equal(imported(tmp_path / "out"), expected)
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_a_variable_a_table(tmp_path):
    parts = [shuffled(size) for size in SIZES]
    for number, (keys, rows) in enumerate(parts):
        write_dump(tmp_path / "d", f"emb_{9 - number}_0", keys, rows)
    (tmp_path / "out" / ".unfinished-step-0000000000").mkdir(parents=True)  # of a killed import
    names = "emb/9:0,emb/8:0,emb/7:0,emb_6_0"  # TensorFlow's, and as in the files' names
    words = ["import-sok", str(tmp_path / "d"), str(tmp_path / "out"), "--names", names]
    assert main([*words, "--vocab_sizes", ",".join(map(str, SIZES))]) == 0
    found, first = imported(tmp_path / "out"), 0
    for keys, rows in parts:
        np.testing.assert_array_equal(found[first : first + len(keys)][keys], rows)
        first += len(keys)


def import_keys(tmp_path: Path, keys: np.ndarray, sizes: str) -> int:
    dump = write_dump(tmp_path / "d", "v", keys, np.ones((len(keys), WIDTH), np.float32))
    return main(["import-sok", str(dump), str(tmp_path / "out"), "--vocab_sizes", sizes])


@pytest.mark.parametrize("at_once", [1 << 20, 4])
@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        ([9, 4, 0, 1, 7, 2, 5], "3 missing, the first 3"),
        ([9, 4, 0, 1, 7, 2, 5, 3, 6], "1 missing, the first 8"),
        ([9, 4, 0, 1, 4, 7, 2, 5, 8, 3, 4, 6, 9], "3 there already, the first 4"),
        ([10, 9, -1, 4, 0, 1, 7, 2, 5, 8, 3, 6], "2 outside of that, the first -1"),
        (
            [12, 9, 9, 4, 0, 1, 7, 2, 5, 2],
            "1 outside of that, the first 12; 2 there already, the first 2; 3 missing, the first 3",
        ),
    ],
)
def test_each_key_must_be_there_once(tmp_path, monkeypatch, capsys, at_once, keys, problems):
    monkeypatch.setattr(sok_dump, "_CHECKED_KEYS", at_once)
    assert import_keys(tmp_path, np.array(keys), "4,6") == 1
    error = capsys.readouterr().err
    path = tmp_path / "d" / "v-key"
    assert error.startswith(
        f"error: {path}: expected each key from 0 to 9 once, found {problems}; give "
    )
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unsigned_key_beyond_all_is_outside(tmp_path, capsys):
    keys = np.array([0, 2**64 - 1, 1], np.uint64)
    assert import_keys(tmp_path, keys, "2") == 1
    assert "1 outside of that, the first 18446744073709551615;" in capsys.readouterr().err


def test_bad_dumps_are_one_line(tmp_path, capsys):
    keys, rows = np.arange(10), np.ones((10, WIDTH), np.float32)
    dump = write_dump(tmp_path / "d", "v", keys, rows)

    def error(*words: str) -> str:
        sizes = [] if "--metadata" in words else ["--vocab_sizes=4,6"]
        assert main(["import-sok", str(dump), str(tmp_path / "out"), *sizes, *words]) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert text.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return text

    assert "found 3" in error("--names=v,v,v")
    assert "w-key" in error("--names=w")
    assert "found 0 for table 1" in error("--vocab_sizes=10,0")
    assert "no such file; name the metadata.json" in error("--metadata", str(tmp_path / "none"))
    (tmp_path / "m").write_text("{}")
    assert "vocab_sizes: expected" in error("--metadata", str(tmp_path / "m"))
    write_dump(dump, "w", keys[:6], np.ones((6, WIDTH + 1), np.float32))
    assert "found v, w; set --names" in error()
    write_dump(dump, "u", keys[:4], np.ones((4, WIDTH), np.float32))
    assert f"expected rows of {WIDTH} values" in error("--names=u,w")
    os.truncate(dump / "v-weight", 296 + 300)
    assert "v-weight: expected equally wide rows of float32 for the 10 keys" in error("--names=v")
    os.truncate(dump / "v-key", 296 + 77)
    assert "v-key: expected keys of 8 bytes" in error("--names=v")
    os.truncate(dump / "v-key", 200)
    assert "v-key: expected the header of a key file" in error("--names=v")
    write_file(dump / "v-key", 1, keys)
    assert "v-key: expected the header of a key file" in error("--names=v")
    write_file(dump / "v-key", 0, rows)
    assert "int32, int64, uint32, uint64, found another" in error("--names=v")
    dump = tmp_path / "nothing"
    assert "found none; name the folder that sok.dump wrote" in error()


def test_checkpoints_that_are_there_stay(tmp_path, capsys):
    assert import_keys(tmp_path, np.arange(10), "10") == 0
    before = imported(tmp_path / "out")
    write_dump(tmp_path / "d", "v", np.arange(10), np.zeros((10, WIDTH), np.float32))
    words = ["import-sok", str(tmp_path / "d"), str(tmp_path / "out"), "--vocab_sizes=10"]
    assert main(words) == 1
    assert "step-0000000000: already exists" in capsys.readouterr().err
    np.testing.assert_array_equal(imported(tmp_path / "out"), before)


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files fails the same system calls."""
    keys, rows = shuffled(100_000)
    dump = write_dump(tmp_path / "d", "v", keys, rows)
    words = f"import-sok {dump} {tmp_path / 'out'} --vocab_sizes=100000"
    ended = run(
        ["bash", "-c", f"ulimit -f 2000; exec python3 -m dlrm.checkpoint {words}"], time_limit=60
    )
    assert ended.code == 1
    assert re.search(r"(?m)^error: .*File too large.*tables-00000-of-00001", ended.output)
    assert os.listdir(tmp_path / "out") == [".lock"]


def test_the_room_is_reserved_before_it_is_filled(tmp_path):
    """A disk that is full only then would kill the process."""
    start = allocate(tmp_path / "t", {"rows": (np.dtype("<f4"), (50_000, WIDTH))})
    status = (tmp_path / "t").stat()
    assert status.st_size == start + 50_000 * WIDTH * 4
    assert status.st_blocks * 512 >= status.st_size


def test_memory_does_not_grow_with_the_tables(tmp_path):
    """102 MB of rows in random order."""
    keys, rows = shuffled(200_000, 128)
    dump = write_dump(tmp_path / "d", "v", keys, rows)
    del rows
    assert peak_megabytes("import-sok", dump, tmp_path / "out", "--vocab_sizes=200000") < 100


def test_a_run_goes_on_from_it_with_new_dense_weights(tmp_path):
    keys, rows = shuffled(sum(SIZES))
    write_dump(tmp_path / "d", "v", keys, rows)
    words = ["import-sok", str(tmp_path / "d"), str(tmp_path / "out")]
    assert main([*words, "--vocab_sizes", ",".join(map(str, SIZES))]) == 0
    tables = ArrayTables(np.zeros((sum(SIZES), WIDTH), np.float32))

    def run_of(sizes: tuple[int, ...], width: int) -> RunRecord:
        return RunRecord(
            ModelShape(13, sizes, width, (4, width), (9, 1)), {"lr": 1}, {"train": "a"}
        )

    def go_on(run: RunRecord):
        out, own = str(tmp_path / "out"), tmp_path / "own"
        return resume(out, own, run, State({}, tables), Collective(), pinned=("lr",))

    for sizes, width, difference in (
        (SIZES, 9, "embedding_dim: checkpoint 8, run 9"),
        ((7, 1, 501, 12), 8, "rows of table 2: checkpoint 500, run 501"),
        (SIZES[:3], 8, "tables: checkpoint 4, run 3"),
    ):
        with pytest.raises(MisfitError, match=f": {difference};"):
            go_on(run_of(sizes, width))
    resumed = go_on(run_of(SIZES, WIDTH))
    assert resumed.position == Position(0, 0, 0)
    np.testing.assert_array_equal(tables.rows[keys], rows)
