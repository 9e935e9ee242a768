"""MLPerf's multi-hot data: the random stream, and its files there and back."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm.data import SplitSource
from dlrm.data.verify import check_data
from dlrm.formats.bags import ids_of_tables
from preprocess.multi_hot import MLPERF_HOTNESS, MLPERF_TABLE_SIZES, random_bags
from preprocess.multi_hot.__main__ import main
from preprocess.multi_hot.random_bags import RandomBags
from tests.support.tiny_data import write_split

SEED, SAMPLES, SIZES, HOTNESS = 2611, 300, (40, 7, 500, 1), (3, 1, 12, 4)


def reference_tables():
    """The tables drawn whole, from NumPy's global legacy generator."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    tables = []
    for rows, hot in zip(SIZES, HOTNESS):
        others = np.random.randint(0, rows, size=(rows, hot - 1))  # noqa: NPY002
        tables.append(np.concatenate([np.arange(rows)[:, None], others], 1).astype(np.int32))
    np.random.set_state(state)  # noqa: NPY002
    return tables


@pytest.mark.parametrize("block", [1 << 22, 100, 1])
def test_the_stream_of_the_legacy_generator_drawn_in_blocks(monkeypatch, block):
    monkeypatch.setattr(random_bags, "_BLOCK_NUMBERS", block)
    rng, random = np.random.default_rng(SEED), RandomBags()
    for rows, hot, table in zip(SIZES, HOTNESS, reference_tables()):
        wanted = np.unique(rng.integers(0, rows, 25)).astype(np.int32)
        np.testing.assert_array_equal(random.of_feature(rows, hot, wanted), table[wanted])


@pytest.fixture
def one_hot(tmp_path):
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, 2, SAMPLES).astype("<i4")
    dense = rng.integers(0, 50, (SAMPLES, 3)).astype("<i4")
    ids = rng.integers(0, 10**6, (SAMPLES, 4)).astype("<i4")  # taken modulo the sizes
    write_split(tmp_path / "one", labels, dense, ids, [10**6] * 4, num_dense=3)
    return tmp_path / "one", ids


def test_bags_picked_by_ids_and_files_there_and_back(tmp_path, one_hot, capsys):
    folder, ids = one_hot
    sizes, hotness = (",".join(map(str, numbers)) for numbers in (SIZES, HOTNESS))
    bags, days, again = (str(tmp_path / name) for name in ("bags", "days", "again"))
    wanted = [f"--hotness={hotness}", f"--table_sizes={sizes}"]
    assert main(["make", str(folder), bags, *wanted]) == 0
    assert check_data(bags, "full").faults == []
    made = SplitSource(bags)
    assert made.vocab_sizes == SIZES
    expected = [t[ids[:, i] % len(t)] for i, t in enumerate(reference_tables())]
    for ours, theirs in zip(ids_of_tables(made.read_ids(0, SAMPLES)), expected):
        np.testing.assert_array_equal(ours, theirs.ravel())

    for day in ("7", "8"):
        assert main(["write", bags, days, f"--day={day}"]) == 0
    with np.load(f"{days}/day_7_sparse_multi_hot.npz") as archive:
        assert archive.files == ["0", "1", "2", "3"]
        for table, theirs in enumerate(expected):
            assert archive[str(table)].dtype == np.int32
            np.testing.assert_array_equal(archive[str(table)], theirs)
    dense, labels = (np.load(f"{days}/day_7_{name}.npy") for name in ("dense", "labels"))
    assert (dense.dtype, labels.dtype, labels.shape) == (np.float32, np.int32, (SAMPLES, 1))

    assert main(["read", days, again, "--days=7-8", f"--table_sizes={sizes}"]) == 0
    assert check_data(again, "full").faults == []
    twice, once = SplitSource(again), made.read(0, SAMPLES)
    for start in (0, SAMPLES):
        found = twice.read(start, start + SAMPLES)
        np.testing.assert_array_equal(found[0], once[0])
        np.testing.assert_array_equal(found[1].ids, once[1].ids)
        np.testing.assert_array_equal(found[2], once[2])
    assert main(["make", str(folder), bags, *wanted]) == 1
    assert "expected no data, found some" in capsys.readouterr().err
    assert main(["read", days, again + "2", "--days=7", "--table_sizes=1,2,3,4,5"]) == 1
    assert "expected an archive of arrays 0 to 4" in capsys.readouterr().err
    assert main(["make", str(folder), bags + "2"]) == 1
    assert "--hotness: expected a number from 1 for each of the 4 tables" in capsys.readouterr().err


def test_numbers_of_mlperf():
    assert (len(MLPERF_HOTNESS), sum(MLPERF_HOTNESS)) == (26, 214)
    assert (len(MLPERF_TABLE_SIZES), sum(MLPERF_TABLE_SIZES)) == (26, 204_184_588)
