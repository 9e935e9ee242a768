"""Exports as a user runs them: bounded memory, killed midway, a full disk, damage found later."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from dlrm.checkpoint.directory import checkpoint_name
from dlrm.checkpoint.manifest import ModelShape
from serving.__main__ import main
from serving.row_frequencies import write_counts
from tests.support.checkpoints import peak_megabytes, random_weights, write_checkpoint
from tests.support.processes import ROOT, run

WIDTH = 64
PLAIN = "--no_saved_model"


def make(folder, sizes, *, ranks=2, step=12):
    """A checkpoint of tables whose rows name their keys."""
    model = ModelShape(3, sizes, WIDTH, (8, WIDTH), (8, 1))
    keys = np.arange(sum(sizes), dtype=np.float32)
    rows = keys[:, None] + np.arange(WIDTH, dtype=np.float32) / WIDTH
    weights = random_weights(model, seed=1)
    return write_checkpoint(folder, model, rows, weights, ranks=ranks, step=step)


def test_memory_does_not_grow_with_the_tables(tmp_path):
    """96 MB of rows; in order of use there are also some bytes a row, and a stretch of the file."""
    sizes = (370_000, 5_000)
    path = make(tmp_path / "c", sizes)
    counts = np.random.default_rng(2).integers(0, 99, sum(sizes))
    write_counts(tmp_path / "counts", counts, sizes)
    for words, most in (
        (["--tables=int8"], 90),
        (["--tables=float32", f"--row_frequencies={tmp_path / 'counts'}"], 190),
    ):
        out = tmp_path / str(most)
        used = peak_megabytes("export", path, out, PLAIN, *words, command="serving")
        assert used < most
    rows = load_file(out / "tables.safetensors")["rows"]
    order = np.lexsort((np.arange(len(counts)), -counts))
    np.testing.assert_array_equal(rows[:, 0], order.astype(np.float32))


def test_a_killed_export_leaves_nothing_that_looks_finished(tmp_path, capsys):
    path, out = make(tmp_path / "c", (4, 150_000)), tmp_path / "out"
    words = ["export", str(path), str(out), PLAIN, "--tables=int8_rows"]
    process = subprocess.Popen([sys.executable, "-m", "serving", *words], cwd=ROOT)
    unfinished = tmp_path / ".unfinished-out"
    rows = unfinished / "tables.safetensors"
    while process.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not out.exists()
    for folder in (out, unfinished):
        assert main(["info", str(folder)]) == 1
        assert "expected an artifact, found no artifact.json" in capsys.readouterr().err
    assert main(words) == 0
    assert not unfinished.exists()
    assert main(["verify", str(out)]) == 0


def test_two_exports_to_one_folder_do_not_mix(tmp_path):
    path, out = make(tmp_path / "c", (4, 150_000)), tmp_path / "out"
    words = [sys.executable, "-m", "serving", "export", str(path), str(out), PLAIN]
    first = subprocess.Popen([*words, "--tables=int8_rows"], cwd=ROOT)
    while not (tmp_path / ".unfinished-out" / "tables.safetensors").exists():
        assert first.poll() is None
        time.sleep(0.001)
    assert main(words[3:]) == 1
    assert first.wait(60) == 0
    assert main(["verify", str(out)]) == 0


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files fails the same system calls."""
    path, out = make(tmp_path / "c", (30_000,)), tmp_path / "out"
    write_counts(tmp_path / "counts", np.arange(30_000), (30_000,))
    for words in ("", f"--row_frequencies={tmp_path / 'counts'}"):
        command = (
            f"ulimit -f 4000; exec {sys.executable} -m serving export {path} {out} {PLAIN} {words}"
        )
        ended = run(["bash", "-c", command], time_limit=60)
        assert ended.code == 1
        error = ended.output.splitlines()[-1]
        assert error.startswith("error: ")
        assert "File too large" in error
        assert "tables.safetensors" in error
        assert sorted(left.name for left in tmp_path.iterdir()) == ["c", "counts"]


@pytest.mark.parametrize("attempt", range(2))
def test_verify_finds_any_flipped_bit(tmp_path, capsys, attempt):
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    dice = random.Random(seed)
    make(tmp_path / checkpoint_name(7), (20_000,), step=7)
    make(tmp_path / checkpoint_name(11), (20_000,), ranks=3, step=11)
    out = tmp_path / "out"
    assert main(["export", str(tmp_path), str(out), PLAIN]) == 0
    assert f"{out / 'tables.safetensors'}: float32, 5.12 MB" in capsys.readouterr().out
    assert main(["info", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"{out}: step 11" in text
    assert "20,000 rows, stored as float32, 256 bytes a row, 5.12 MB" in text
    victim = dice.choice(sorted(path for path in out.iterdir() if path.name != "artifact.json"))
    offset = dice.randrange(victim.stat().st_size)
    with open(victim, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << dice.randrange(8)]))
    assert main(["verify", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    block = offset >> 20 << 20
    end = min(block + (1 << 20), victim.stat().st_size)
    bad = [line for line in lines[:-1] if not line.endswith(": ok")]
    assert len(bad) == 1
    assert bad[0].startswith(f"{victim}: damaged between offsets {block} and {end}:")
    assert lines[-1].startswith("1 of 4 files damaged")
    os.truncate(victim, 10)
    assert main(["verify", str(out)]) == 1
    assert f"{victim}: expected" in capsys.readouterr().out


def test_nothing_waits_for_tensorflow(tmp_path):
    path = make(tmp_path / "c", (40,))
    code = (
        "import sys; from serving.__main__ import main; code = main(sys.argv[1:]); "
        "assert not {'tensorflow', 'keras', 'horovod', 'polars'} & set(sys.modules); sys.exit(code)"
    )
    for words in (["export", path, tmp_path / "o", PLAIN], ["info", tmp_path / "o"]):
        ended = run([sys.executable, "-c", code, *words], time_limit=60)
        assert ended.code == 0, ended.output
