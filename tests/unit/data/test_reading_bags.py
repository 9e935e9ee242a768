"""Bags of ids: files against NumPy, batches, synthetic samples, checks and faults."""

from __future__ import annotations

import numpy as np
import pytest

from dataset import open_data
from dlrm.config import Config
from dlrm.data import Batches, SplitSource, SyntheticSource, write_synthetic
from dlrm.data.verify import check_data
from dlrm.formats import atomic_files
from dlrm.formats.bag_files import BagWriter, bag_file_names
from dlrm.formats.bags import BagLayout, BagTable
from dlrm.formats.packed_ids import plan
from tests.support.bag_data import batch_of, change_metadata, random_bags, write_bags

SEED, SAMPLES, SIZES = 16_11, 203, (7, 50, 3, 1000)
# Tables 1 and 3 hold bags, tables 0 and 2 one id.


@pytest.fixture
def columns():
    rng = np.random.default_rng(SEED)
    first = random_bags(rng, 1, SAMPLES, SIZES[1], pooling="mean", weights=True)
    last = random_bags(rng, 3, SAMPLES, SIZES[3], longest=12)
    single = rng.integers(0, (SIZES[0], SIZES[2]), (SAMPLES, 2)).astype("<i4")
    return [single[:, 0], first, single[:, 1], last]


@pytest.fixture
def folder(tmp_path, columns):
    return write(tmp_path / "data", columns)


def write(folder, columns, **metadata):
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, 2, SAMPLES).astype("<i4")
    dense = rng.integers(0, 9, (SAMPLES, 2)).astype("<i4")
    single = np.ascontiguousarray(np.stack([columns[0], columns[2]], 1))
    packing = metadata.pop("packing", None)
    if packing:
        single, metadata["packed_ids"] = packing.pack(single), packing.to_json()
    return write_bags(folder, labels, dense, single, SIZES, [columns[1], columns[3]], **metadata)


def assert_same(found, expected):
    for name, ours, theirs in zip(found._fields, found, expected):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
        assert ours.dtype == theirs.dtype, name


@pytest.mark.parametrize("packed", [False, True])
def test_any_range_of_samples(tmp_path, columns, packed):
    packing = plan([SIZES[0], SIZES[2]]) if packed else None
    source = SplitSource(write(tmp_path / "data", columns, packing=packing))
    for start, stop in ((0, SAMPLES), (0, 1), (17, 130), (SAMPLES - 1, SAMPLES), (5, 5)):
        if start < stop:
            assert_same(source.read_ids(start, stop), batch_of(columns, start, stop))
    means = [1.0, *(np.mean([len(bag) for bag in columns[t].bags]) for t in (1,)), 1.0]
    assert source.bag_layout.pooling == ("sum", "mean", "sum", "sum")
    np.testing.assert_allclose(source.bag_layout.mean_ids[:3], means)
    assert source.bag_layout.weights


def test_batches_of_all_ranks_make_the_samples(folder, columns):
    """The last batch is padded with empty bags; a shuffled order takes the same batches."""
    source = SplitSource(folder)
    for rank in range(3):
        mine = Batches(source, 30, rank, 3, drop_remainder=False)
        for step, batch in enumerate(mine):
            start = step * 30 + rank * 10
            stop = min(start + 10, SAMPLES)
            assert batch.ids.lengths.shape == (4, 10)
            assert batch.valid == max(stop - start, 0)
            assert not batch.ids.lengths[:, batch.valid :].any()
            if batch.valid:
                expected = batch_of(columns, start, stop)
                np.testing.assert_array_equal(batch.ids.ids, expected.ids)
                np.testing.assert_array_equal(batch.ids.lengths[:, : batch.valid], expected.lengths)
    shuffled = Batches(source, 20, 0, 1, drop_remainder=True, order_seed=SEED)
    firsts = [batch.first for batch in shuffled]
    assert sorted(firsts) == list(range(0, 200, 20)) != firsts
    for batch in shuffled:
        assert_same(batch.ids, batch_of(columns, batch.first, batch.first + 20))


def test_every_table_has_bags(tmp_path):
    rng = np.random.default_rng(SEED)
    bags = [random_bags(rng, table, 40, 9) for table in range(2)]
    zeros = np.zeros((40, 1), "<i4")
    folder = write_bags(
        tmp_path, zeros[:, 0], zeros, np.empty((40, 0), "<i4"), (9, 9), bags, dense_log=False
    )
    assert_same(SplitSource(folder).read_ids(3, 31), batch_of(bags, 3, 31))


def test_all_bags_of_a_table_empty(tmp_path, columns):
    columns[3] = columns[3]._replace(bags=[np.empty(0, np.int32)] * SAMPLES)
    folder = write(tmp_path, columns)
    with pytest.raises(ValueError, match="max_ids from 1"):
        SplitSource(folder)
    change_metadata(folder, bags=bags_of(columns))
    assert_same(SplitSource(folder).read_ids(0, 9), batch_of(columns, 0, 9))


def bags_of(columns, **values):
    return [
        {"table": t, "pooling": columns[t].pooling, "max_ids": 12, "weights": t == 1, **values}
        for t in (1, 3)
    ]


def test_fingerprints_see_the_bags(folder, columns):
    before = SplitSource(folder).fingerprint
    change_metadata(folder, bags=bags_of(columns, pooling="sum"))
    pooled = SplitSource(folder).fingerprint
    weights = np.fromfile(folder / "bag_1_weights.bin", "<f4")
    (-weights).tofile(folder / "bag_1_weights.bin")
    assert len({before, pooled, SplitSource(folder).fingerprint}) == 3


def offsets(folder, table, change):
    path = folder / f"bag_{table}_offsets.bin"
    values = np.fromfile(path, "<i8")
    change(values)
    values.tofile(path)


def descend(values):
    values[100] = values[90] - 1


def long_bag(values):
    values[1] = values[20]


def cut_last(values):
    values[-1] -= 1


def begin_late(values):
    values[0] = 1


FAULTS = {
    "descending": (descend, "bag_3_offsets.bin: sample 99: expected 0 to 12 ids"),
    "too long": (long_bag, "bag_3_offsets.bin: sample 0: expected 0 to 12 ids"),
    "too few ids": (cut_last, "bag_3_ids.bin: expected .* ids \\(the last offset"),
    "a first offset": (begin_late, "expected a first offset of 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_offsets_are_named_when_read_and_when_verified(folder, fault):
    change, message = FAULTS[fault]
    offsets(folder, 3, change)
    with pytest.raises(ValueError, match=message):
        SplitSource(folder).read_ids(0, SAMPLES)
    found = check_data(folder, "full").faults
    assert len(found) in (1, 2)
    assert "bag_3_" in found[0]


def test_verify_names_ids_and_weights_and_finds_no_fault_without(folder, columns):
    assert check_data(folder, "full").faults == []
    assert check_data(folder, "full", statistics=True).counts.of_table(3).sum() == sum(
        map(len, columns[3].bags)
    )
    ids = np.fromfile(folder / "bag_3_ids.bin", "<i4")
    ids[41] = SIZES[3]
    ids.tofile(folder / "bag_3_ids.bin")
    weights = np.fromfile(folder / "bag_1_weights.bin", "<f4")
    weights[7] = np.nan
    weights.tofile(folder / "bag_1_weights.bin")
    found = sorted(check_data(folder, "full").faults)
    assert "position 7: expected a finite weight" in found[0]
    assert "position 41, categorical column 3: expected an id in [0, 1000)" in found[1]
    with pytest.raises(ValueError, match="weight 7: expected a finite value, found nan"):
        SplitSource(folder).read_ids(0, SAMPLES)


@pytest.mark.parametrize(
    ("bags", "message"),
    [
        ([{"table": 4, "pooling": "sum", "max_ids": 3}], "expected tables from 0 to 3"),
        ([{"table": 1, "pooling": "max", "max_ids": 3}], "expected pooling sum or mean"),
        ([{"table": 1, "max_ids": 3}], "expected objects such as"),
        ({"table": 1}, "expected a list of objects"),
    ],
)
def test_bad_descriptions(folder, bags, message):
    change_metadata(folder, bags=bags)
    with pytest.raises(ValueError, match=message):
        SplitSource(folder)


def test_writer_writes_the_format(folder, columns, tmp_path):
    bag = BagTable(1, "mean", 5, weights=True)
    names = bag_file_names(bag)
    paths = [tmp_path / name for name in names]
    with atomic_files.whole_files(paths) as parts, BagWriter(bag, parts) as writer:
        for start in range(0, SAMPLES, 64):
            block = batch_of([columns[1]], start, min(start + 64, SAMPLES))
            writer.write(block.lengths[0], block.ids, block.weights)
        with pytest.raises(ValueError, match="table 1, sample 204: expected 0 to 5 ids"):
            writer.write(np.array([0, 6]), np.zeros(6), np.zeros(6))
        writer.close()
    for name, found in zip(names, writer.sums):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
        assert found.bytes == (folder / name).stat().st_size


def test_synthetic_bags_in_memory_and_on_disk(tmp_path):
    hotness = (1, 4, 2)
    source = SyntheticSource((5, 300, 9), 2, 500, SEED, hotness)
    assert source.bag_layout == BagLayout(("sum",) * 3, (1.0, 4.0, 2.0), max_ids=(0, 4, 2))
    write_synthetic(tmp_path, source)
    assert check_data(tmp_path, "full").faults == []
    read = SplitSource(tmp_path)
    assert read.bag_layout == source.bag_layout
    for ours, theirs in zip(source.read(100, 300), read.read(100, 300)):
        if isinstance(ours, tuple):
            assert_same(ours, theirs)
            np.testing.assert_array_equal(ours.lengths, np.tile([[1], [4], [2]], 200))
            assert ours.ids[200:1000].max() > 250
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_a_hotness_of_one_id_is_no_bag():
    plain, ones = (SyntheticSource((5, 6), 2, 50, SEED, hotness) for hotness in ((), (1, 1)))
    assert ones.bag_layout is None
    assert plain.fingerprint == ones.fingerprint
    np.testing.assert_array_equal(plain.read(0, 50)[1], ones.read(0, 50)[1])


def test_both_parts_pool_alike(tmp_path, columns):
    for part in ("train", "test"):
        write(tmp_path / part, columns)
    config = Config.of(data_dir=str(tmp_path), global_batch_size=20, verify_data="off")
    assert open_data(config, 0, 1).bag_layout.pooling[1] == "mean"
    change_metadata(tmp_path / "test", bags=bags_of(columns, pooling="sum"))
    with pytest.raises(ValueError, match="expected bags of ids, their pooling"):
        open_data(config, 0, 1)
