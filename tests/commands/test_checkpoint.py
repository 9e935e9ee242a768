"""Checkpoints from the command line: what it says of them, finds in them, and makes of them."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from dlrm.checkpoint import directory as names
from dlrm.checkpoint import export
from dlrm.checkpoint.__main__ import main
from dlrm.checkpoint.manifest import (
    DENSE_FILE,
    ROWS,
    Manifest,
    ModelShape,
    Position,
    read_manifest,
    tables_file,
)
from dlrm.checkpoint.safetensors_file import BLOCK_BYTES, TensorWriter, write_tensors
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.distributed.collective import Collective
from tests.support.checkpoints import ArrayTables, peak_megabytes
from tests.support.processes import ROOT, run

SIZES, WIDTH = (5, 1, 4000, 3), 96  # more than a block, and tables that begin on any rank
DENSE = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}
RUN = RunRecord(
    ModelShape(13, SIZES, WIDTH, (8, WIDTH), (16, 1)),
    {"lr": 24.0, "bottom_mlp": (8, WIDTH), "checkpoint_dir": None},
    {"train": "1a2b", "test": "3c4d"},
)


def row_of(keys, width=WIDTH):
    """A row whose values name its key and column; exact in float32."""
    return (np.asarray(keys)[:, None] % 65536 * width + np.arange(width)).astype(np.float32)


class Dense:
    """As much of a variable as saving asks for."""

    def __init__(self, value):
        self.value = value

    def numpy(self):
        return self.value


def save(directory: Path, step: int, run: RunRecord = RUN) -> Path:
    """A checkpoint by the writer of a run of one rank."""
    checkpoints = Checkpoints(directory, Collective(), run, keep=9)
    state = State({n: Dense(v) for n, v in DENSE.items()}, ArrayTables(row_of(range(sum(SIZES)))))
    checkpoints.save(state, Position(step, 1, 4096))
    assert checkpoints._lock is not None
    checkpoints._lock.close()  # as at the end of the run
    return directory / names.checkpoint_name(step)


def write(path: Path, ranks: int, sizes=SIZES, width=WIDTH, dense=DENSE) -> Path:
    """A checkpoint as a run of several ranks leaves it."""
    path.mkdir(parents=True)
    files = {DENSE_FILE: write_tensors(path / DENSE_FILE, dense)} if dense else {}
    for rank in range(ranks):
        keys = np.arange(rank, sum(sizes), ranks)
        name = tables_file(rank, ranks)
        with TensorWriter(path / name, {ROWS: (np.dtype("<f4"), (len(keys), width))}) as writer:
            for first in range(0, len(keys), 4096):
                writer.write(row_of(keys[first : first + 4096], width))
            files[name] = writer.finish()
    model = dataclasses.replace(RUN.model, vocab_sizes=sizes, embedding_dim=width)
    position = Position(12, 1, 4096)
    Manifest(position, model, RUN.settings, RUN.data, ranks, files).write(path)
    return path


def flip(path: Path, offset: int) -> None:
    """Changes one bit."""
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_info_says_what_a_checkpoint_is_of(tmp_path, capsys):
    assert main(["info", str(save(tmp_path, 1234))]) == 0
    text = capsys.readouterr().out
    size = sum(SIZES)
    for words in (
        "step 1,234, epoch 1, next sample 4,096;",
        "of 1 rank; every file there, of its size",
        "model: 13 dense features, bottom MLP 8-96, top MLP 16-1",
        f"tables: 4 of width 96, {size:,} rows, 1.54 MB",
        "2: 4,000 rows, 1.54 MB",
        "lr=24.0  bottom_mlp=[8,96]  checkpoint_dir=None",
        "train=1a2b  test=3c4d",
    ):
        assert words in text
    assert max(map(len, text.splitlines()[1:])) <= 100


def test_info_of_another_architecture(tmp_path, capsys):
    shape = ModelShape(None, SIZES, WIDTH, None, None, "HSTU")
    path = save(tmp_path, 7, run=RunRecord(shape, {"layers": 2}, {}))
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "model: HSTU, shaped by the settings" in text
    assert "layers=2" in text


def test_info_of_a_folder_has_a_line_a_checkpoint(tmp_path, capsys):
    for step in (8, 9, 10, 100):
        save(tmp_path, step)
    (tmp_path / names.checkpoint_name(9) / tables_file(0, 1)).unlink()
    os.truncate(tmp_path / names.checkpoint_name(10) / DENSE_FILE, 50)
    flip(tmp_path / names.checkpoint_name(100) / "manifest.json", 5)
    assert main(["info", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("every file there, of its size")
    assert f"{tables_file(0, 1)}: no such file" in lines[1]
    assert re.search(r"dense.safetensors: expected \d+ bytes, found 50: it ends at", lines[2])
    assert "manifest.json: damaged" in lines[3]


def test_the_newest_is_verified_and_found_whole(tmp_path, capsys):
    damaged, newest = save(tmp_path, 9), save(tmp_path, 10)
    flip(damaged / DENSE_FILE, 3)
    assert main(["verify", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("manifest.json", DENSE_FILE, tables_file(0, 1))
    assert lines[:3] == [f"{newest / name}: ok" for name in names]
    assert re.fullmatch(r"no damage; 1.54 MB in [\d.]+ s, [\d.]+ GB/s", lines[3])


@pytest.mark.parametrize("attempt", range(3))
def test_verify_finds_any_flipped_bit(tmp_path, capsys, attempt):
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    dice = random.Random(seed)
    path = write(tmp_path / "c", ranks=3, sizes=(30000,))
    victim = dice.choice(sorted(read_manifest(path).files))
    size = (path / victim).stat().st_size
    offset = dice.randrange(size)
    flip(path / victim, offset)
    assert main(["verify", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()[-6:]
    block = offset // BLOCK_BYTES * BLOCK_BYTES
    end = min(block + BLOCK_BYTES, size)
    expected = f"{path / victim}: damaged between offsets {block} and {end}:"
    assert [line for line in lines[:-1] if not line.endswith(": ok")] == [
        next(line for line in lines if line.startswith(expected))
    ]
    assert lines[-1].startswith("1 of 4 files damaged")


def test_verify_names_the_first_damage_of_each_file(tmp_path, capsys):
    path = write(tmp_path / "c", ranks=2, sizes=(50000,))  # 9 blocks a rank
    first, second = (path / tables_file(rank, 2) for rank in range(2))
    for block in (8, 6, 5):
        flip(first, block * BLOCK_BYTES + 77)
    size = second.stat().st_size
    os.truncate(second, 1000)
    (path / DENSE_FILE).unlink()
    assert main(["verify", str(path)]) == 1
    text = capsys.readouterr().out
    assert f"{first}: damaged between offsets {5 * BLOCK_BYTES} and {6 * BLOCK_BYTES}:" in text
    assert text.count(str(first)) == 1
    assert f"{second}: expected {size} bytes, found 1000: it ends at offset 1000" in text
    assert f"{path / DENSE_FILE}: No such file" in text
    assert "3 of 3 files damaged" in text


def test_a_damaged_manifest_vouches_for_nothing(tmp_path, capsys):
    path = save(tmp_path, 5)
    file = path / "manifest.json"
    text = file.read_text()
    file.write_text(text.replace('"step": 5', '"step": 6'))
    for name, *words in (["verify"], ["info"], ["export", str(tmp_path), "--format=parquet"]):
        assert main([name, str(path), *words]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {file}: damaged")
        assert error.count("\n") == 1


def test_nothing_waits_for_tensorflow(tmp_path):
    path = write(tmp_path / "c", ranks=2)
    code = (
        "import sys; from dlrm.checkpoint.__main__ import main; code = main(sys.argv[1:]); "
        "assert not {'tensorflow', 'keras', 'horovod'} & set(sys.modules); sys.exit(code)"
    )
    for name, *words in (["info"], ["verify"], ["export", tmp_path / "out", "--format=parquet"]):
        ended = run([sys.executable, "-c", code, name, path, *words], time_limit=60)
        assert ended.code == 0, ended.output


def read_table(path: Path, width: int = WIDTH) -> np.ndarray:
    """An exported table by somebody else's reader; row i is that of id i."""
    if path.suffix == ".safetensors":
        content = load_file(path)
        assert list(content) == ["rows"]
        return content["rows"]
    frame = pl.read_parquet(path)
    assert frame.schema == {"id": pl.Int64, "vector": pl.Array(pl.Float32, width)}
    np.testing.assert_array_equal(frame["id"].to_numpy(), np.arange(len(frame)))
    return frame["vector"].to_numpy()


@pytest.mark.parametrize("format_name", ["parquet", "safetensors"])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("piece", "most"), [(1 << 14, 1), (1 << 14, 1 << 16), (4 << 20, 1 << 28)])
def test_an_export_holds_every_row(tmp_path, monkeypatch, capsys, format_name, ranks, piece, most):
    monkeypatch.setattr(export, "PIECE_BYTES", piece)
    monkeypatch.setattr(export, "MOST_BYTES", most)
    path, out = write(tmp_path / "c", ranks), tmp_path / "new" / "out"
    assert main(["export", str(path), str(out), f"--format={format_name}"]) == 0
    names = [f"table_{table:03d}.{format_name}" for table in range(4)]
    assert sorted(os.listdir(out)) == sorted([*names, DENSE_FILE])
    first = 0
    for name, size in zip(names, SIZES):
        np.testing.assert_array_equal(read_table(out / name), row_of(range(first, first + size)))
        first += size
    assert (out / DENSE_FILE).read_bytes() == (path / DENSE_FILE).read_bytes()
    dense = load_file(out / DENSE_FILE)
    assert dense.keys() == DENSE.keys()
    for name, value in DENSE.items():
        np.testing.assert_array_equal(dense[name], value)
    assert f"{out / names[2]}: 4,000 rows, 1." in capsys.readouterr().out


def test_some_tables_of_what_a_run_saved(tmp_path):
    save(tmp_path / "c", 3)
    words = ["export", str(tmp_path / "c"), str(tmp_path / "o"), "--format=parquet"]
    assert main([*words, "--tables", "3,0"]) == 0
    assert sorted(os.listdir(tmp_path / "o")) == [
        DENSE_FILE, "table_000.parquet", "table_003.parquet",
    ]  # fmt: skip
    np.testing.assert_array_equal(
        read_table(tmp_path / "o" / "table_003.parquet"), row_of(range(4006, 4009))
    )


def test_an_export_leaves_out_what_an_optimizer_keeps(tmp_path):
    state = {"adam.steps": np.ones(1, np.int64), "adam.mean.top_bias_0": np.ones(3, np.float32)}
    path = write(tmp_path / "c", 2, dense={**DENSE, **state})
    assert main(["export", str(path), str(tmp_path / "out"), "--format=safetensors"]) == 0
    assert load_file(tmp_path / "out" / DENSE_FILE).keys() == DENSE.keys()


def test_tables_without_dense_weights_are_exported(tmp_path):
    path = write(tmp_path / "c", 2, dense={})
    assert main(["export", str(path), str(tmp_path / "o"), "--format=safetensors"]) == 0
    assert DENSE_FILE not in os.listdir(tmp_path / "o")


@pytest.mark.parametrize("format_name", ["parquet", "safetensors"])
def test_damage_is_never_exported(tmp_path, capsys, format_name):
    path, out = write(tmp_path / "c", ranks=2, sizes=(9, 30000, 9)), tmp_path / "out"
    victim = path / tables_file(1, 2)
    flip(victim, 2 * BLOCK_BYTES + 5)
    assert main(["export", str(path), str(out), f"--format={format_name}"]) == 1
    error = capsys.readouterr().err
    start = f"error: {victim}: damaged between offsets {2 * BLOCK_BYTES} and {3 * BLOCK_BYTES}:"
    assert error.startswith(start)
    assert error.count("\n") == 1
    assert os.listdir(out) == [f"table_000.{format_name}"]


def test_damaged_dense_weights_are_never_exported(tmp_path, capsys):
    path = write(tmp_path / "c", 1, dense={"kernel": np.ones(600_000, np.float32)})
    flip(path / DENSE_FILE, 2 * BLOCK_BYTES + 5)
    assert main(["export", str(path), str(tmp_path / "o"), "--format=parquet", "--tables=0"]) == 1
    offset = 2 * BLOCK_BYTES
    assert f"dense.safetensors: damaged between offsets {offset} and" in capsys.readouterr().err
    assert os.listdir(tmp_path / "o") == ["table_000.parquet"]


@pytest.mark.parametrize("format_name", ["parquet", "safetensors"])
def test_a_full_disk_is_one_line(tmp_path, format_name):
    """A limit on the size of files fails the same system calls."""
    path = write(tmp_path / "c", ranks=2, sizes=(9, 30000))
    words = (
        f"ulimit -f 4000; exec {sys.executable} -m dlrm.checkpoint export {path} {tmp_path / 'out'}"
    )
    ended = run(["bash", "-c", f"{words} --format={format_name}"], time_limit=60)
    assert ended.code == 1
    told, error = ended.output.splitlines()
    assert f"table_000.{format_name}" in told
    assert error.startswith("error: ")
    assert "File too large" in error
    assert f"table_001.{format_name}" in error
    assert os.listdir(tmp_path / "out") == [f"table_000.{format_name}"]


def test_a_killed_export_leaves_nothing_that_looks_finished(tmp_path):
    path, out = write(tmp_path / "c", ranks=1, sizes=(4, 120000)), tmp_path / "out"
    words = ["export", str(path), str(out), "--format=safetensors"]
    process = subprocess.Popen([sys.executable, "-m", "dlrm.checkpoint", *words], cwd=ROOT)
    unfinished = out / "table_001.safetensors.tmp"
    while process.poll() is None and not (unfinished.exists() and unfinished.stat().st_size):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert sorted(os.listdir(out)) == ["table_000.safetensors", unfinished.name]
    (out / "table_000.safetensors").unlink()
    assert main(words) == 0
    np.testing.assert_array_equal(
        read_table(out / "table_001.safetensors"), row_of(range(4, 120004))
    )
    assert not unfinished.exists()


def test_an_export_never_overwrites(tmp_path, capsys):
    path = write(tmp_path / "c", 1)
    words = ["export", str(path), str(tmp_path / "o"), "--format=parquet"]
    assert main([*words, "--tables=1"]) == 0
    (tmp_path / "o" / DENSE_FILE).unlink()
    assert main(words) == 1
    assert "table_001.parquet: already exists" in capsys.readouterr().err
    assert os.listdir(tmp_path / "o") == ["table_001.parquet"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "required: COMMAND"),
        (["info"], "required: PATH"),
        (["info", "{tmp}/none"], "{tmp}/none: expected a checkpoint or a folder of checkpoints"),
        (["verify", "{tmp}/c/dense.safetensors"], "expected a checkpoint or a folder"),
        (["verify", "{tmp}"], "{tmp}: expected a checkpoint, found no manifest.json in it"),
        (["export", "{tmp}/c", "{tmp}/o"], "required: --format"),
        (["export", "{tmp}/c", "{tmp}/o", "--format=csv"], "invalid choice: 'csv'"),
        (["export", "{tmp}/c", "{tmp}/o", "--format=parquet", "--tables=1,x"], "found '1,x'"),
        (
            ["export", "{tmp}/c", "{tmp}/o", "--format=parquet", "--tables=1,4"],
            "--tables: expected numbers from 0 to 3, found 4",
        ),
        (["export", "{tmp}/c", "{tmp}/c/dense.safetensors", "--format=parquet"], "dense.saf"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, expected):
    write(tmp_path / "c", 1)
    assert main([word.format(tmp=tmp_path) for word in words]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert expected.format(tmp=tmp_path) in output.err
    assert not (tmp_path / "o").exists()


def test_a_checkpoint_of_more_files_than_may_be_open(tmp_path):
    path = write(tmp_path / "c", ranks=80, sizes=(400,), width=4)
    words = (
        f"ulimit -Sn 64; exec {sys.executable} -m dlrm.checkpoint export {path} {tmp_path / 'out'}"
    )
    ended = run(["bash", "-c", f"{words} --format=safetensors"], time_limit=60)
    assert ended.code == 0, ended.output
    np.testing.assert_array_equal(
        read_table(tmp_path / "out" / "table_000.safetensors"), row_of(range(400), 4)
    )


def test_memory_does_not_grow_with_the_table(tmp_path):
    """192 MB of rows; beside the libraries only a few pieces are held."""
    path = write(tmp_path / "c", ranks=2, sizes=(375_000,), width=128)
    for words, most in (
        (["verify", path], 80),
        (["export", path, tmp_path / "s", "--format=safetensors"], 100),
        (["export", path, tmp_path / "p", "--format=parquet"], 230),
    ):
        assert peak_megabytes(*words) < most
