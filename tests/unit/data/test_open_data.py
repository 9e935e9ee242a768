"""The data that the settings ask for: its sizes, its files, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset import evaluation_batch, open_data
from dlrm.config import Config
from dlrm.data import Data
from dlrm.data.verify import check_data
from tests.support.processes import ROOT, run
from tests.support.tiny_data import NUM_DENSE, SETTINGS, VOCAB_SIZES, write_random_split

SMALL = {"synthetic_dataset_num_entries": 67, "synthetic_dataset_table_sizes": (5, 9, 300)}


def opened(**settings: Any) -> Data:
    return open_data(Config.of(**{**SETTINGS, **settings}), 0, 1)


def everything(data: Data) -> list[np.ndarray]:
    """All samples of both parts."""
    parts = (data.train._source, data.test._source)
    return [values for part in parts for values in part.read(0, part.num_samples)]


def test_synthetic_samples_of_other_sizes() -> None:
    data = opened(dataset_type="synthetic_gpu", num_numerical_features=4, **SMALL)
    assert (data.num_dense, data.vocab_sizes) == (4, (5, 9, 300))
    dense, ids, labels, *test = everything(data)
    assert (dense.shape, ids.shape, labels.shape) == ((67, 4), (67, 3), (67,))
    assert [len(values) for values in test] == [16] * 3
    assert [int(column.max()) for column in ids.T[:2]] == [4, 8]
    same = opened(use_synthetic_dataset=True, num_numerical_features=4, **SMALL)
    assert data.fingerprints == same.fingerprints


def test_synthetic_samples_on_disk_are_the_same_and_written_once(tmp_path: Path) -> None:
    settings = {**SMALL, "synthetic_dataset_dir": os.fspath(tmp_path / "made")}
    computed = everything(opened(dataset_type="synthetic_gpu", **settings))
    on_disk = opened(dataset_type="synthetic_disk", **settings)
    assert on_disk.vocab_sizes == (5, 9, 300)
    for found, expected in zip(everything(on_disk), computed):
        np.testing.assert_array_equal(found, expected)
    check_data(tmp_path / "made", "full", per_category=False).raise_fault()

    files = sorted((tmp_path / "made").rglob("*"))
    times = [path.stat().st_mtime_ns for path in files]
    opened(dataset_type="synthetic_disk", **settings)
    assert [path.stat().st_mtime_ns for path in files] == times
    for other in ({"seed": 5}, {"synthetic_dataset_table_sizes": (5, 9, 301)}):
        with pytest.raises(ValueError, match="found others; set another --synthetic_dataset_dir"):
            opened(dataset_type="synthetic_disk", **{**settings, **other})


def test_a_write_that_was_killed_is_done_again(tmp_path: Path) -> None:
    settings = {**SMALL, "dataset_type": "synthetic_disk", "synthetic_dataset_dir": str(tmp_path)}
    expected = everything(opened(**settings))
    (tmp_path / "train" / "metadata.json").unlink()  # written last
    (tmp_path / "train" / "dense.bin").write_bytes(b"half")
    for found, values in zip(everything(opened(**settings)), expected):
        np.testing.assert_array_equal(found, values)


def test_other_data_is_not_overwritten(tmp_path: Path) -> None:
    write_random_split(tmp_path / "train", 20)
    before = (tmp_path / "train" / "label.bin").read_bytes()
    with pytest.raises(ValueError, match="train: expected no samples or the synthetic ones"):
        opened(dataset_type="synthetic_disk", synthetic_dataset_dir=str(tmp_path))
    assert (tmp_path / "train" / "label.bin").read_bytes() == before


def test_two_processes_write_one_set(tmp_path: Path) -> None:
    """Both begin together; one of them writes, the other waits, and neither reads half a file."""
    code = (
        "import sys; from dataset import open_data; from dlrm.config import Config;"
        "config = Config.of(dataset_type='synthetic_disk', global_batch_size=8,"
        "synthetic_dataset_num_entries=300000, synthetic_dataset_dir=sys.argv[1]);"
        "print(dict(open_data(config, 0, 1).fingerprints))"
    )
    script = 'python3 -c "$0" "$1" & python3 -c "$0" "$1" && wait $!'
    ended = run(["sh", "-c", script, code, os.fspath(tmp_path)], time_limit=120, cwd=ROOT)
    assert ended.code == 0, ended.output
    first, second = ended.output.strip().splitlines()
    assert first == second
    assert json.loads((tmp_path / "train" / "synthetic.json").read_text())["samples"]


def write_parts(folder: Path) -> Path:
    write_random_split(folder / "train", 50)
    write_random_split(folder / "test", 20)
    return folder


def test_the_greatest_table(tmp_path: Path) -> None:
    folder = os.fspath(write_parts(tmp_path))
    assert opened(data_dir=folder).vocab_sizes == VOCAB_SIZES == (5, 3)
    capped = opened(data_dir=folder, max_table_size=4, bad_ids="modulo")
    assert capped.vocab_sizes == (4, 3)


def test_the_number_of_dense_features_is_checked(tmp_path: Path) -> None:
    folder = os.fspath(write_parts(tmp_path))
    assert opened(data_dir=folder, num_numerical_features=NUM_DENSE).num_dense == NUM_DENSE
    with pytest.raises(ValueError, match="expected 13 dense columns .*, found 2; leave the flag"):
        opened(data_dir=folder, num_numerical_features=13)


@pytest.mark.parametrize(
    ("global_batch", "samples", "ranks", "expected"),
    [
        (2048, 200_000, 1, 8192),
        (2048, 200_000, 2, 16384),
        (3000, 200_000, 1, 9000),  # whole global batches
        (65536, 200_000, 2, 65536),  # never less than one
        (2048, 5000, 2, 6144),  # no more than hold all samples
        (2048, 100, 1, 2048),
    ],
)
def test_an_evaluation_takes_many_samples_at_once(
    global_batch: int, samples: int, ranks: int, expected: int
) -> None:
    assert evaluation_batch(global_batch, samples, ranks) == expected


def test_a_test_batch_that_the_ranks_cannot_share(tmp_path: Path) -> None:
    config = Config.of(**{**SETTINGS, "data_dir": os.fspath(write_parts(tmp_path))})
    with pytest.raises(ValueError, match="found 9; set --test_batch_size=8$"):
        open_data(config.replace(test_batch_size=9), 0, 2)
    data = open_data(config.replace(test_batch_size=6), 1, 2)
    assert (data.train.local_batch, data.test.local_batch, len(data.test)) == (4, 3, 4)
