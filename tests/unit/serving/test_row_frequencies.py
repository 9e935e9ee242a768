"""Counts of rows beside NumPy's own, from samples and from preprocess' dictionaries."""

from __future__ import annotations

import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlrm.formats.packed_ids import plan
from preprocess.__main__ import main as preprocess
from serving import row_frequencies
from serving.__main__ import main
from serving.row_frequencies import count_dictionary, count_samples, read_counts, write_counts
from serving.row_order import order_by_use, position_type
from tests.support.tiny_data import write_split

SIZES = (700, 1, 40)


def split_folder(folder, *, packed, samples=5000):
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    dice = np.random.default_rng(seed)
    ids = np.minimum(dice.zipf(1.3, (samples, len(SIZES))) - 1, np.array(SIZES) - 1)
    ids = ids.astype(np.int32)
    more, stored = {}, ids
    if packed:
        stored, more = plan(SIZES).pack(ids), {"packed_ids": plan(SIZES).to_json()}
    labels, dense = np.zeros(samples, np.int32), np.zeros((samples, 2), np.int32)
    return write_split(folder, labels, dense, stored, SIZES, num_dense=2, **more), ids


@pytest.mark.parametrize("packed", [False, True])
def test_every_id_is_counted(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(row_frequencies, "BLOCK_SAMPLES", 1024)
    folder, ids = split_folder(tmp_path / "d", packed=packed)
    counts, sizes, keys = count_samples(folder)
    expected = [np.bincount(column, minlength=size) for column, size in zip(ids.T, SIZES)]
    assert sizes == SIZES
    assert keys is None
    assert counts.tolist() == np.concatenate(expected).tolist()


def test_an_id_outside_its_table_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(row_frequencies, "BLOCK_SAMPLES", 1024)
    folder, ids = split_folder(tmp_path / "d", packed=False)
    for bad in (40, -1):
        ids[3000, 2] = bad
        ids.tofile(folder / "category.bin")
        what = f"sample 3000, table 2: expected an id from 0 to 39, found {bad}"
        with pytest.raises(ValueError, match=what):
            count_samples(folder)


@pytest.mark.parametrize("flags", [["--rules=dlrm"], ["--rules=spark", "--frequency_threshold=3"]])
def test_dictionaries_have_the_counts_of_all_rows(tmp_path, capsys, flags):
    dice = np.random.default_rng(8)
    words = [[f"{number:x}" if number else "" for number in row] for row in dice.zipf(2, (900, 2))]
    lines = ["1\t5\t" + "\t".join(row) for row in words]
    (tmp_path / "raw.tsv").write_text("\n".join(lines) + "\n")
    shape = ["--num_dense=1", "--num_categorical=2"]
    out = tmp_path / "out"
    assert preprocess([str(tmp_path / "raw.tsv"), f"--output={out}", *shape, *flags]) == 0
    records = [
        np.fromfile(out / name, "<i4").reshape(-1, 4)
        for name in ("train_data.bin", "test_data.bin")
    ]
    ids = np.concatenate(records)[:, 2:]
    assert main(["count", f"--dictionary={out}", str(tmp_path / "counts")]) == 0
    assert "1,800 uses of" in capsys.readouterr().out
    content = load_file(tmp_path / "counts")
    sizes = content["vocab_sizes"].tolist()
    expected = [np.bincount(column, minlength=size) for column, size in zip(ids.T, sizes)]
    assert content["counts"].tolist() == np.concatenate(expected).tolist()
    assert count_dictionary(out)[1] == tuple(sizes)


def test_a_file_of_counts_knows_its_model(tmp_path):
    path = tmp_path / "counts"
    counts = np.arange(741, dtype=np.int64)
    write_counts(path, counts, SIZES)
    assert read_counts(path, SIZES).of_all().tolist() == counts.tolist()
    for sizes, what in (
        ((700, 2, 40), "table 1: expected 2, found 1"),
        ((700, 1), "the number of tables: expected 2, found 3"),
    ):
        with pytest.raises(ValueError, match=f"{path}: {what}; make it with"):
            read_counts(path, sizes)
    with pytest.raises(FileNotFoundError, match="absent: no such file; make it with"):
        read_counts(tmp_path / "absent", SIZES)
    save_file({"counts": counts}, path)
    with pytest.raises(ValueError, match=r"expected counts of rows, found \['counts'\]"):
        read_counts(path, SIZES)
    write_counts(path, -counts, SIZES)
    with pytest.raises(ValueError, match="expected 741 counts of 0 or more"):
        read_counts(path, SIZES)


def test_one_source_is_named(tmp_path, capsys):
    for words, found in (
        ([str(tmp_path / "c")], "neither"),
        ([str(tmp_path / "d"), str(tmp_path / "c"), f"--dictionary={tmp_path}"], "both"),
    ):
        assert main(["count", *words]) == 1
        assert f"expected DATA or --dictionary=DIR, found {found}" in capsys.readouterr().err


def test_most_used_rows_come_first_and_equal_ones_by_key():
    order = order_by_use(np.array([3, 0, 7, 3, 7, 0, 1]))
    assert order.keys.tolist() == [2, 4, 0, 3, 6, 1, 5]
    assert order.positions.tolist() == [2, 5, 0, 3, 1, 6, 4]
    assert order.positions.dtype == np.int32
    assert position_type(2**31 - 1) == np.int32
    assert position_type(2**31) == np.int64
