"""`split_bin.py` as users call it, and every bad record file they may have."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from dlrm.data import open_split
from dlrm.data.split import split
from dlrm.formats import records as record_file
from dlrm.formats.checksums import read_checksums, sum_of
from dlrm.formats.records import RecordChecker, RecordLayout

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "split_bin.py"
COLUMNS = ("label.bin", "dense.bin", "category.bin")
OUTPUTS = (*COLUMNS, "metadata.json", "checksums.json")
SIZES = (4, 100, 7)


def run(*arguments, **options):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def records(samples, num_dense=2, sizes=SIZES, seed=0):
    """[samples, 1 + num_dense + tables] int32; the largest id of each table occurs."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    out = np.empty((samples, 1 + num_dense + len(sizes)), "<i4")
    out[:, 0] = rng.integers(0, 2, samples)
    out[:, 1 : 1 + num_dense] = rng.integers(0, 50, (samples, num_dense))
    out[:, 1 + num_dense :] = rng.integers(0, sizes, (samples, len(sizes)))
    out[-1, 1 + num_dense :] = np.array(sizes) - 1
    return out


def save(folder, values, name="train_data.bin"):
    path = folder / name
    path.write_bytes(values.tobytes())
    return path


def refused(result, pattern, folder=None):
    """One line on stderr, exit code 1, nothing under the final or temporary names."""
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert pattern in result.stderr
    if folder is not None and folder.exists():
        assert list(folder.iterdir()) == []


FLAGS = ("--num_dense", "2", "--slot_size_array", json.dumps(SIZES))


def test_the_call_of_the_benchmark(tmp_path):
    sizes = list(range(3, 29))
    values = records(1000, 13, sizes)
    out = tmp_path / "data" / "train"
    types = ("--label_type", "int32", "--dense_type", "int32", "--category_type", "int32")
    array = ("--slot_size_array", str(sizes))
    result = run(save(tmp_path, values), out, *array, *types, "--dense_log", "True")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    assert "1000 samples" in result.stdout
    assert "MB/s" in result.stdout
    assert "\x1b" not in result.stdout
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    assert (out / "label.bin").read_bytes() == values[:, 0].tobytes()
    assert (out / "dense.bin").read_bytes() == values[:, 1:14].tobytes()
    assert (out / "category.bin").read_bytes() == values[:, 14:].tobytes()
    content = json.loads((out / "metadata.json").read_text())
    assert content == {
        "vocab_sizes": sizes,
        "label_raw_type": "int32",
        "dense_raw_type": "int32",
        "category_raw_type": "int32",
        "dense_log": True,
        "num_dense": 13,
        "dense_log_offset": 3.0,
    }


def test_the_reader_gets_what_the_records_held(tmp_path):
    values = records(5000)
    assert run(save(tmp_path, values), tmp_path / "out", *FLAGS).returncode == 0
    source = open_split(tmp_path / "out", per_category=False)
    assert source.vocab_sizes == SIZES
    dense, ids, labels = source.read(0, 5000)
    np.testing.assert_allclose(dense, np.log(values[:, 1:3] + 3.0), rtol=3e-7)
    np.testing.assert_array_equal(ids, values[:, 3:])
    np.testing.assert_array_equal(labels, values[:, 0])


def test_without_flags_the_ids_give_the_sizes(tmp_path):
    sizes = tuple(range(3, 29))
    result = run(save(tmp_path, records(200, 13, sizes)), tmp_path / "out")
    assert result.returncode == 0
    assert "give --slot_size_array" in result.stdout
    content = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert tuple(content["vocab_sizes"]) == sizes


def describe(folder, **changes):
    content = {"num_dense": 2, "vocab_sizes": [9, 100, 8], "dense_log_offset": 1.0}
    (folder / "records.json").write_text(json.dumps({**content, **changes}))


def test_records_json_then_flags(tmp_path):
    path = save(tmp_path, records(50))
    describe(tmp_path, train_samples=50, rules="dlrm")
    assert run(path, tmp_path / "a").returncode == 0
    content = json.loads((tmp_path / "a" / "metadata.json").read_text())
    assert content["vocab_sizes"] == [9, 100, 8]
    assert (content["num_dense"], content["dense_log_offset"]) == (2, 1.0)
    result = run(path, tmp_path / "b", *FLAGS, "--dense_log_offset", "2", "--dense_log", "False")
    assert result.returncode == 0
    content = json.loads((tmp_path / "b" / "metadata.json").read_text())
    assert content["vocab_sizes"] == list(SIZES)
    assert (content["dense_log"], content["dense_log_offset"]) == (False, 2.0)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"train_samples": 51}, "expected 51 records of 24 bytes = 1224 bytes, found 1200 bytes"),
        ({"num_dense": "2"}, "num_dense: expected a positive integer, found '2'"),
        ({"vocab_sizes": None}, "vocab_sizes: expected a list"),
    ],
)
def test_wrong_records_json(tmp_path, changes, pattern):
    describe(tmp_path, **changes)
    refused(run(save(tmp_path, records(50)), tmp_path / "out"), pattern, tmp_path / "out")


def test_wrong_flags(tmp_path):
    path, out = save(tmp_path, records(10)), tmp_path / "out"
    for flags, pattern in (
        (("--dense_log", "yes"), "expected True or False, found 'yes'"),
        (("--slot_size_array", "[1, 2"), "expected a JSON list"),
        (("--slot_size_array", "__import__('os')"), "expected a JSON list"),
        (("--slot_size_array", "[1, 0]"), "found 0 for table 1"),
        (("--label_type", "int8"), "invalid choice: 'int8'"),
        (("--category_type", "float32"), "invalid choice: 'float32'"),
        (("--num_categorical", "4", *FLAGS), "expected 4 vocabulary sizes"),
        ((*FLAGS, "--num_dense", "0"), "num_dense: expected a positive integer, found 0"),
        (("--unknown",), "unrecognized arguments: --unknown"),
    ):
        refused(run(path, out, *flags), pattern, out)


def test_wrong_files(tmp_path):
    values, out = records(10), tmp_path / "out"
    refused(run(tmp_path / "none.bin", out), "none.bin: no such record file")
    refused(run(tmp_path, out, *FLAGS), "expected a record file")
    path = save(tmp_path, values, "cut.bin")
    path.write_bytes(values.tobytes()[:-4])
    refused(run(path, out, *FLAGS), "expected whole records of 24 bytes", out)
    path.write_bytes(b"")
    refused(run(path, out, *FLAGS), "found an empty file", out)
    label = save(tmp_path, values, "label.bin")
    refused(run(label, tmp_path, *FLAGS), "is also an output of the split")
    assert label.read_bytes() == values.tobytes()


BIG = 120_000  # records: more than two blocks, and a last block of an odd size


@pytest.mark.parametrize(
    ("record", "column", "value", "flags", "pattern"),
    [
        (17, 4, 100, (), "record 17, categorical column 1: id 100 is outside [0, 100); "),
        (0, 3, -1, (), "record 0, categorical column 0: id -1 is outside [0, 4); "),
        (BIG - 1, 5, 2**31 - 1, (), f"record {BIG - 1}, categorical column 2: id 2147483647 "),
        (90_001, 0, 2, (), "record 90001, label: expected 0 or 1, found 2; "),
        (90_001, 0, -1, (), "record 90001, label: expected 0 or 1, found -1; "),
        (50_000, 2, -3, (), "record 50000, dense column 1: ln(-3 + 3) is not finite; "),
        (50_000, 2, -1, ("--dense_log_offset", "1"), "ln(-1 + 1) is not finite; "),
    ],
)
def test_first_bad_record_is_named(tmp_path, record, column, value, flags, pattern):
    values = records(BIG)
    values[record, column] = value
    if record < BIG - 10:
        values[record + 3, 3:] = -7  # a later fault of another kind must not win
        values[record + 4, :2] = -9
    out = tmp_path / "out"
    result = run(save(tmp_path, values), out, *FLAGS, *flags)
    refused(result, f"train_data.bin: {pattern}" if not flags else pattern, out)


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [(0, 1, 2), (0, 0, -1), (1, -2, -3), (3, 3, 4), (4, 99, 100), (5, 0, -1)],
)
def test_the_edge_of_each_range(column, good, bad):
    for record in (0, 40, 65, 69):
        values = records(70)
        for value in (good, bad):
            values[record, column] = value
            parts = (values[:, 0], values[:, 1:3], values[:, 3:])
            block = [np.ascontiguousarray(part) for part in parts]
            checker = RecordChecker(Path("f"), RecordLayout(2, 3, SIZES))
            if value == good:
                checker.check(0, *block)
                continue
            with pytest.raises(ValueError, match=rf"^f: record {record}, .*{bad}"):
                checker.check(0, *block)


def test_negative_ids_are_refused_without_sizes(tmp_path):
    values = records(100, 2)
    values[41, 4] = -5
    result = run(save(tmp_path, values), tmp_path / "o", "--num_dense=2", "--num_categorical=3")
    refused(result, "record 41, categorical column 1: id -5 is negative", tmp_path / "o")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("log", ["True", "False"])
def test_float_dense_must_be_finite(tmp_path, bad, log):
    values = records(100)
    dense = values[:, 1:3].copy().view("<f4")
    dense[:] = np.linspace(-2.5, 1e30, 200).reshape(100, 2)
    values[:, 1:3] = dense.view("<i4")
    flags = (*FLAGS, "--dense_type", "float32", "--dense_log", log)
    out = tmp_path / "out"
    assert run(save(tmp_path, values), out, *flags).returncode == 0
    assert (out / "dense.bin").read_bytes() == dense.tobytes()
    dense[60, 1] = bad
    values[:, 1:3] = dense.view("<i4")
    pattern = f"record 60, dense column 1: expected a finite value, found {bad}"
    refused(run(save(tmp_path, values), tmp_path / "bad", *flags), pattern, tmp_path / "bad")


def test_float_labels(tmp_path):
    values = records(100)
    labels = values[:, 0].astype("<f4")
    values[:, 0] = labels.view("<i4")
    flags = (*FLAGS, "--label_type", "float32")
    assert run(save(tmp_path, values), tmp_path / "out", *flags).returncode == 0
    assert (tmp_path / "out" / "label.bin").read_bytes() == labels.tobytes()
    for bad in (0.5, np.nan):
        labels[7] = bad
        values[:, 0] = labels.view("<i4")
        result = run(save(tmp_path, values), tmp_path / "bad", *flags)
        refused(result, f"record 7, label: expected 0 or 1, found {bad}", tmp_path / "bad")


def test_random_faults_against_a_plain_loop():
    seed = 5
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    limits = np.array(SIZES)
    for _ in range(300):
        samples = int(rng.integers(1, 130))
        values = records(samples, seed=int(rng.integers(1 << 30)))
        for _ in range(rng.integers(0, 3)):
            values[rng.integers(samples), rng.integers(6)] = rng.choice(
                [-4, -3, -2, -1, 1, 2, 4, 7, 99, 100]
            )
        want = None
        for number, (label, *rest) in enumerate(values.tolist()):
            dense, ids = np.array(rest[:2]), np.array(rest[2:])
            if (
                label not in (0, 1)
                or (dense <= -3).any()
                or (ids < 0).any()
                or (ids >= limits).any()
            ):
                want = number
                break
        checker = RecordChecker(Path("f"), RecordLayout(2, 3, SIZES))
        parts = (values[:, 0], values[:, 1:3], values[:, 3:])
        labels, dense, ids = (np.ascontiguousarray(part) for part in parts)
        if want is None:
            checker.check(1000, labels, dense, ids)
        else:
            with pytest.raises(ValueError, match=rf"^f: record {1000 + want}, "):
                checker.check(1000, labels, dense, ids)


BLOCK = (1 << 20) // 24  # records of 24 bytes


@pytest.mark.parametrize("samples", [1, 31, 32, 33, BLOCK, BLOCK + 1, 4 * BLOCK, 9 * BLOCK - 5])
def test_every_size_round_trips(tmp_path, samples):
    values = records(samples)
    path = save(tmp_path, values)
    description, count = split(path, tmp_path / "out", RecordLayout(2, 3))
    assert count == samples
    assert description.vocab_sizes == SIZES
    sums = read_checksums(tmp_path / "out")
    assert tuple(sums) == COLUMNS
    for name, part in zip(COLUMNS, (values[:, 0], values[:, 1:3], values[:, 3:])):
        assert (tmp_path / "out" / name).read_bytes() == part.tobytes()
        assert sums[name] == (part.size * 4, f"{zlib.crc32(part.tobytes()):08x}")


def test_a_kill_at_any_rename_leaves_no_checksums_of_other_bytes(tmp_path, monkeypatch):
    """Stops at each step that changes names in the folder, as a kill there would."""
    first, second = (save(tmp_path, records(500, seed=s), f"{s}_data.bin") for s in (1, 2))
    steps = 0
    layout = RecordLayout(2, 3, SIZES)

    class Killed(BaseException):
        pass

    def counted(real, stop_at):
        def step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise Killed
            return real(*arguments, **options)

        return step

    for stop_at in range(1, 100):
        out = tmp_path / f"out{stop_at}"
        split(first, out, layout)
        steps = 0
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "replace", counted(os.replace, stop_at))
            patch.setattr(os, "fsync", counted(os.fsync, stop_at))
            split(second, out, layout)
        for name, want in (read_checksums(out) or {}).items():
            assert sum_of(out / name) == want, f"after step {stop_at}"
        if steps < stop_at:
            break
    assert 9 < stop_at < 100, "every step was stopped at once"


def test_kill_leaves_no_description_and_a_rerun_is_whole(tmp_path):
    block = records(50_000)
    path = save(tmp_path, np.tile(block, (100, 1)))
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), str(path), str(out), *FLAGS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started = out / "category.bin.tmp"
    deadline = time.monotonic() + 30
    while not (started.exists() and started.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not any((out / name).exists() for name in OUTPUTS)
    assert run(path, out, *FLAGS).returncode == 0
    assert run(path, tmp_path / "other", *FLAGS).returncode == 0
    assert sorted(item.name for item in out.iterdir()) == sorted(OUTPUTS)
    for name in OUTPUTS:
        assert (out / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_failed_run_keeps_the_older_output(tmp_path):
    values, out = records(100), tmp_path / "out"
    assert run(save(tmp_path, values), out, *FLAGS).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    values[50, 0] = 3
    assert run(save(tmp_path, values), out, *FLAGS).returncode == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_full_disk_is_one_line(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))

    path, out = save(tmp_path, records(BIG)), tmp_path / "out"
    refused(run(path, out, *FLAGS, preexec_fn=limit), "File too large: '", out)


def test_memory_does_not_grow_with_the_file(tmp_path):
    program = (
        "import re, sys, split_bin\n"
        "code = split_bin.main(sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "sys.exit(code)\n"
    )
    block = records(50_000)
    # The process's own high-water mark: getrusage would include that of the parent it forked from.
    peaks = []
    for repeats in (4, 80):
        path = save(tmp_path, np.tile(block, (repeats, 1)))
        command = [sys.executable, "-c", program, str(path), str(tmp_path / "out"), *FLAGS]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert result.returncode == 0
        peaks.append(int(result.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 8 * 1024, f"peak memory in kB: {peaks}"


def test_a_terminal_gets_a_progress_bar(tmp_path):
    path = save(tmp_path, records(1000))
    ours, theirs = pty.openpty()
    command = [sys.executable, str(SCRIPT), str(path), str(tmp_path / "out"), *FLAGS]
    environment = {**os.environ, "TERM": "xterm"}
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=60
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert result.returncode == 0
    assert "train_data.bin" in shown
    assert b"\x1b" not in result.stdout


def test_the_fold_is_an_ordinary_maximum():
    rng = np.random.default_rng(1)
    for rows in (1, 31, 32, 33, 100):
        values = rng.integers(0, 2**32, (rows, 5), np.uint32)
        assert (record_file._max_by_column(values) == values.max(axis=0)).all()
