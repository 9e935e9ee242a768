"""Good data described as NumPy describes it, and every fault of files found and named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dlrm.data.split import split
from dlrm.data.verify import check_data, check_values
from dlrm.formats.checksums import sum_of, write_checksums
from dlrm.formats.records import RecordLayout
from preprocess.verify import main
from tests.support.processes import ROOT
from tests.support.tiny_data import write_per_category

SIZES = (3, 700, 12, 70_000)
NUM_DENSE = 2
SAMPLES = {"train": 60_000, "test": 9_001}


def values_of(part):
    """[samples, 7] int32 records; low ids are frequent."""
    seed = len(part)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    samples = SAMPLES[part]
    out = np.empty((samples, 1 + NUM_DENSE + len(SIZES)), "<i4")
    out[:, 0] = rng.random(samples) < 0.3
    out[:, 1 : 1 + NUM_DENSE] = rng.integers(0, 50, (samples, NUM_DENSE))
    out[:, 1 + NUM_DENSE :] = np.array(SIZES) * rng.random((samples, len(SIZES))) ** 3
    return out


VALUES = {part: values_of(part) for part in SAMPLES}


def seal(folder):
    write_checksums(folder, {path.name: sum_of(path) for path in folder.glob("*.bin")})


def make_records(folder):
    folder.mkdir()
    for part, values in VALUES.items():
        values.tofile(folder / f"{part}_data.bin")
    description = {
        "num_dense": NUM_DENSE,
        "vocab_sizes": SIZES,
        "dense_log_offset": 1.0,
        "rules": "spark",
        "train_samples": SAMPLES["train"],
        "validation_samples": 0,
        "test_samples": SAMPLES["test"],
        "rows_by_file": [60_000, 9_001],
        "positives": int(sum(values[:, 0].sum() for values in VALUES.values())),
        "missing_categories": [69_001, 0, 6900, 0],
        "unknown_categories": [0, 34_500, 690, 0],
    }
    (folder / "records.json").write_text(json.dumps(description))
    seal(folder)


def make_split(folder, pack_ids=False):
    make_records(folder)
    for part in VALUES:
        layout = RecordLayout(NUM_DENSE, len(SIZES), SIZES, dense_log_offset=1.0)
        split(folder / f"{part}_data.bin", folder / part, layout, pack_ids=pack_ids)
        (folder / f"{part}_data.bin").unlink()
    (folder / "checksums.json").unlink()


def make_per_category(folder):
    for part, values in VALUES.items():
        dense, ids = values[:, 1 : 1 + NUM_DENSE], values[:, 1 + NUM_DENSE :]
        seal(write_per_category(folder / part, values[:, 0], dense, ids, SIZES))


MAKERS = {
    "records": make_records,
    "split": make_split,
    "packed": lambda folder: make_split(folder, pack_ids=True),
    "per category": make_per_category,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for kind, make in MAKERS.items():
        make(folder / kind)
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Every file has several blocks."""
    monkeypatch.setattr(check_values, "_BLOCK_BYTES", 5_000)


@pytest.fixture
def data(originals, tmp_path):
    """A function that gives a fresh copy of good data of a kind."""

    def copy(kind):
        return Path(shutil.copytree(originals / kind, tmp_path / kind.replace(" ", "_")))

    return copy


@pytest.mark.parametrize("kind", MAKERS)
def test_good_data_is_described_as_numpy_does(originals, kind):
    report = check_data(originals / kind, "full", statistics=True)
    assert report.faults == []
    assert report.notes == []
    assert [part.kind for part in report.parts] == [kind] * 2
    assert len(report.compared) == sum(len(part.files) for part in report.parts)
    for part in report.parts:
        values = VALUES[part.role]
        assert (part.samples, part.positives) == (len(values), values[:, 0].sum())
    ids = np.concatenate(list(VALUES.values()))[:, 1 + NUM_DENSE :]
    for table, size in enumerate(SIZES):
        _, counts = np.unique(ids[:, table], return_counts=True)
        assert report.counts.rows_seen(table) == len(counts)
        hottest = sorted(counts.tolist())[-10:]
        assert report.counts.hottest_share(table) == pytest.approx(sum(hottest) / len(ids))
        np.testing.assert_array_equal(
            report.counts.of_table(table), np.bincount(ids[:, table], minlength=size)
        )


def test_one_part_alone(originals):
    report = check_data(originals / "packed" / "train", "full")
    assert report.faults == []
    assert [(part.role, part.samples) for part in report.parts] == [("train", 60_000)]


def files_of(folder):
    return sorted(path for path in folder.rglob("*.bin"))


def flip(path, rng):
    place = int(rng.integers(path.stat().st_size))
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << int(rng.integers(8))]))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_flipped_bit_in_any_file_is_found(originals, data, kind):
    seed = 11
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    folder = data(kind)
    for path in files_of(folder):
        good = path.read_bytes()
        flip(path, rng)
        assert check_data(folder, "size").faults == [], "nothing is read at this level"
        found = check_data(folder, "full").faults
        sums = [line for line in found if line.startswith(f"{path}: expected CRC-32 ")]
        assert len(sums) == 1, found
        # What else is found is about the same file, or the sum of its labels.
        assert all(str(path) in line or "label" in line for line in found)
        path.write_bytes(good)
    assert check_data(folder, "full").faults == []


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("change", ["cut", "grown", "missing"])
def test_another_size_is_found_at_both_levels(data, kind, change):
    folder = data(kind)
    for path in files_of(folder):
        good = path.read_bytes()
        if change == "missing":
            path.unlink()
        else:
            path.write_bytes(good[:-1] if change == "cut" else good + b"\0")
        for level in ("size", "full"):
            faults = check_data(folder, level).faults
            assert any(line.startswith(str(path)) for line in faults), faults
            assert all("\n" not in line and "; " in line for line in faults)
            assert all("expected" in line or "no such file" in line for line in faults), faults
        path.write_bytes(good)


def put(path, dtype, index, value):
    values = np.fromfile(path, dtype)
    values[index] = value
    values.tofile(path)


@pytest.mark.parametrize(
    ("kind", "name", "dtype", "index", "value", "pattern"),
    [
        ("split", "train/label.bin", "<i4", 59_999, 2, "record 59999: expected label 0 or 1"),
        ("split", "train/label.bin", "<i4", 0, -1, "record 0: expected label 0 or 1, found -1"),
        ("per category", "test/label.bin", "u1", 7, 2, "record 7: expected label 0 or 1, found 2"),
        ("split", "test/dense.bin", "<i4", 11, -1, "record 5, dense column 1: expected a finite"),
        ("per category", "test/dense.bin", "<f2", 8, np.nan, "record 4, dense column 0: .* nan"),
        ("split", "train/category.bin", "<i4", 236_001, 700, r"record 59000, .* 1: .*\[0, 700\)"),
        ("split", "train/category.bin", "<i4", 40, -5, r"record 10, .* column 0: .* found -5"),
        ("per category", "train/category_2.bin", "i1", 9, 12, r"record 9, .* 2: .*\[0, 12\)"),
        ("records", "train_data.bin", "<i4", 7 * 59_000, 9, "record 59000: .* label .* found 9"),
        ("records", "train_data.bin", "<i4", 7 * 59_000 + 1, -1, "record 59000, dense column 0"),
        ("records", "test_data.bin", "<i4", 7 * 8 + 6, 70_000, "record 8, .* column 3: .* 70000"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(data, kind, name, dtype, index, value, pattern):
    folder = data(kind)
    path = folder / name
    put(path, dtype, index, value)
    seal(path.parent)  # written so: no checksum tells
    assert check_data(folder, "size").faults == []
    faults = [
        line for line in check_data(folder, "full").faults if not line.startswith(f"{folder}:")
    ]
    assert len(faults) == 1, faults
    assert re.match(re.escape(f"{path}: ") + pattern, faults[0])
    assert "; 1 such in all; write the folder again" in faults[0]


def test_a_packed_id_outside_its_table_is_found_and_counted(data):
    folder = data("packed")
    words = np.fromfile(folder / "train" / "category.bin", "<u4").reshape(60_000, -1)
    content = json.loads((folder / "train" / "metadata.json").read_text())["packed_ids"]
    word, shift, _ = content["fields"][0]
    words[[100, 59_000, 59_999], word] |= np.uint32(3 << shift)  # 3 of 3 rows: one too far
    words.tofile(folder / "train" / "category.bin")
    seal(folder / "train")
    (fault,) = check_data(folder, "full").faults
    assert re.search(r"record 100, categorical column 0: .*\[0, 3\), found 3; 3 such in all", fault)


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_kind(data, label):
    folder = data("split")
    np.full(SAMPLES["test"], label, "<i4").tofile(folder / "test" / "label.bin")
    seal(folder / "test")
    faults = check_data(folder, "full").faults
    assert any("test" in line and "expected labels 0 and 1" in line for line in faults)


@pytest.mark.parametrize("kind", ["records", "split"])
def test_other_labels_than_preprocess_counted(data, kind):
    folder = data(kind)
    name, stride = ("train_data.bin", 7) if kind == "records" else ("train/label.bin", 1)
    first_zero = int(np.argmin(VALUES["train"][:, 0]))
    put(folder / name, "<i4", first_zero * stride, 1)
    seal((folder / name).parent)
    (fault,) = check_data(folder, "full").faults
    want = sum(values[:, 0].sum() for values in VALUES.values())
    assert f"expected {want} labels 1 in all parts (records.json), found {want + 1}" in fault


def test_another_number_of_samples_than_preprocess_wrote(data):
    folder = data("split")
    description = json.loads((folder / "records.json").read_text())
    (folder / "records.json").write_text(json.dumps({**description, "test_samples": 9_002}))
    (fault,) = check_data(folder, "size").faults
    assert "expected 9002 samples (records.json), found 9001" in fault


@pytest.mark.parametrize(("kind", "name"), [("records", "test_data.bin"), ("split", "test")])
def test_a_part_that_preprocess_wrote_is_gone(data, kind, name):
    folder = data(kind)
    (folder / "checksums.json").unlink(missing_ok=True)
    if kind == "split":
        shutil.rmtree(folder / name)
    else:
        (folder / name).unlink()
    for level in ("size", "full"):
        (fault,) = check_data(folder, level, statistics=True).faults
        assert fault.startswith(f"{folder}: expected a record file or folder of 9001 test samples")


def test_malformed_descriptions_do_not_hide_each_other(data):
    folder = data("split")
    (folder / "train" / "checksums.json").write_text("{}")
    (folder / "test" / "metadata.json").write_text("[]")
    faults = check_data(folder, "size").faults
    assert len(faults) == 2
    assert "test/metadata.json: expected a JSON object" in faults[0]
    assert "train/checksums.json: algorithm: expected crc32" in faults[1]
    with pytest.raises(ValueError, match=r"metadata.json: .* \(and 1 faults? more\); python3 -m"):
        check_data(folder, "size").raise_fault()


def test_other_files_that_checksums_name_are_read_too(data):
    folder = data("records")
    (folder / "table.parquet").write_bytes(b"some values")
    sums = {path.name: sum_of(path) for path in [*files_of(folder), folder / "table.parquet"]}
    write_checksums(folder, sums)
    assert check_data(folder, "full").faults == []
    (folder / "table.parquet").write_bytes(b"same length")
    (fault,) = check_data(folder, "full").faults
    assert fault.startswith(f"{folder / 'table.parquet'}: expected CRC-32 ")


def test_without_checksums_the_rest_is_checked(data):
    folder = data("split")
    (folder / "test" / "checksums.json").unlink()
    report = check_data(folder, "full")
    assert report.faults == []
    assert report.notes == [
        f"{folder / 'test'}: no checksums.json, so there are no checksums to compare"
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_each_file_is_read_by_one_rank(data, size):
    folder = data("per category")
    rng = np.random.default_rng(12)
    for path in files_of(folder):
        good = path.read_bytes()
        flip(path, rng)
        found = [check_data(folder, "full", rank=rank, size=size).faults for rank in range(size)]
        assert sum(bool(faults) for faults in found) == 1
        path.write_bytes(good)


def test_only_the_wanted_parts_are_looked_at(data):
    folder = data("split")
    for name in ("train_data.bin", "test_data.bin"):
        (folder / name).write_bytes(b"other")
    assert check_data(folder, "size").faults != []
    assert check_data(folder, "full", parts=("train", "test")).faults == []
    shutil.rmtree(folder / "test")
    (fault,) = check_data(folder, "size", parts=("train", "test")).faults
    assert "test/metadata.json: no such file" in fault


def command(*arguments):
    line = [sys.executable, "-m", "preprocess.verify", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_screen(originals):
    done = command(originals / "records")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) < 45
    assert all(len(line) < 100 for line in lines[1:])
    share = VALUES["train"][:, 0].mean()
    assert re.match(rf"train_data.bin +60,000 +{share:.2%} +1.68 MB", lines[2])
    start = next(number for number, line in enumerate(lines) if line.startswith("feature"))
    rows = [line.split() for line in lines[start + 1 : start + 1 + len(SIZES)]]
    assert [row[1] for row in rows] == [f"{size:,}" for size in SIZES]
    # 69001 of 69001 rows, 6900 of them; 34500 and 690.
    assert [row[4] for row in rows] == ["100.00%", "0.00%", "10.00%", "0.00%"]
    assert [row[5] for row in rows] == ["0.00%", "50.00%", "1.00%", "0.00%"]
    assert lines[-1].startswith("all good (level full, 1.93 MB in ")


def test_the_command_names_faults_and_fails(data, capsys):
    folder = data("packed")
    os.truncate(folder / "train" / "dense.bin", 100)
    assert main([str(folder), "--level", "size"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"error: {folder}/train/dense.bin: expected 60000 samples")
    assert "1 wrong (level size" in said.out
    assert "packed, 2 of 2 as in checksums.json" in said.out
    assert main([str(folder / "none")]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {folder}/none: expected records.json beside")
    assert said.err.count("\n") == 1


def test_memory_does_not_grow_with_the_samples(tmp_path):
    program = (
        "import re, sys\n"
        "from preprocess.verify import main\n"
        "code = main(sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "sys.exit(code)\n"
    )
    peaks = []
    for repeats in (4, 60):
        path = tmp_path / "train_data.bin"
        np.tile(VALUES["train"], (repeats, 1)).tofile(path)
        split(path, tmp_path / "out", RecordLayout(NUM_DENSE, len(SIZES), SIZES))
        line = [sys.executable, "-c", program, str(tmp_path / "out")]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 16 * 1024, f"peak memory in kB: {peaks}"
