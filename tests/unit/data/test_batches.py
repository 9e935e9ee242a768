"""Sources and batches against plain NumPy slices, and every bad folder a user may have."""

from __future__ import annotations

import gc
import json
import os
import threading
import time

import numpy as np
import pytest

from dlrm.config import SyntheticConfig
from dlrm.data import Batches, PerCategorySource, SplitSource, SyntheticSource, open_split
from dlrm.data.batch_order import batch_order
from dlrm.data.per_category import id_type
from dlrm.formats.column_file import ColumnFile
from dlrm.formats.metadata import Metadata, write_metadata
from tests.support.tiny_data import write_per_category, write_split

SIZES = (10, 126, 127, 32766, 32767, 40_000_000)


def arrays(samples, num_dense=3, seed=0):
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    dense = rng.integers(-2, 2000, (samples, num_dense)).astype("<i4")
    ids = rng.integers(0, SIZES, (samples, len(SIZES))).astype("<i4")
    labels = rng.integers(0, 2, samples).astype("<i4")
    return dense, ids, labels


def save(folder, dense, ids, labels, *, log=True, offset=3.0, **changes):
    """A split folder; the arrays' types become the stored types."""
    metadata = {"dense_log": log, "dense_log_offset": offset, **changes}
    return write_split(folder, labels, dense, ids, SIZES, **metadata)


def save_per_category(folder, dense, ids, labels):
    return write_per_category(folder, labels, dense, ids, SIZES)


def check_types(dense, ids, labels):
    assert (dense.dtype, ids.dtype, labels.dtype) == (np.float32, np.int32, np.float32)
    assert dense.flags.c_contiguous
    assert ids.flags.c_contiguous


class Slices:
    """A source made of arrays; counts how often each sample is read."""

    bag_layout = None

    def __init__(self, samples):
        self.num_samples, self.num_dense, self.vocab_sizes = samples, 2, (5, 6, 7)
        self.reads = np.zeros(samples, int)

    def read(self, start, stop):
        assert 0 <= start < stop <= self.num_samples
        self.reads[start:stop] += 1
        number = np.arange(start, stop)
        dense = np.stack([number + 1, number * 2], 1).astype(np.float32)
        return dense, np.stack([number] * 3, 1).astype(np.int32), (number % 2).astype(np.float32)


# --- sources


@pytest.mark.parametrize("offset", [1.0, 2.0, 3.0])
def test_logarithm_against_float64(tmp_path, offset):
    dense, ids, labels = arrays(50_000)
    dense = np.maximum(dense, 1 - int(offset))
    dense[0, 0] = 2**31 - 1
    source = open_split(save(tmp_path, dense, ids, labels, offset=offset), per_category=False)
    got = source.read(0, 50_000)
    check_types(*got)
    want = np.log(dense.astype(np.float64) + offset)
    np.testing.assert_allclose(got[0], want, rtol=3e-7, atol=3e-7)
    np.testing.assert_array_equal(got[1], ids)
    np.testing.assert_array_equal(got[2], labels)


def test_hand_worked_values(tmp_path):
    dense = np.array([[-2, 0, 1]], "<i4")
    ids = np.array([[1, 2, 3, 4, 5, 6]], "<i4")
    source = SplitSource(save(tmp_path, dense, ids, np.array([1], "<i4")))
    got = source.read(0, 1)[0]
    np.testing.assert_allclose(got, [[0.0, 1.0986123, 1.3862944]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["<i4", "<f4"])
def test_without_logarithm(tmp_path, kind):
    dense, ids, labels = arrays(1000)
    dense, labels = dense.astype(kind), labels.astype(kind)
    got = SplitSource(save(tmp_path, dense, ids, labels, log=False)).read(10, 990)
    check_types(*got)
    np.testing.assert_array_equal(got[0], dense[10:990])
    np.testing.assert_array_equal(got[2], labels[10:990])


def test_finite_values_of_any_size_pass(tmp_path):
    dense, ids, labels = arrays(1000)
    huge = np.full(dense.shape, np.finfo("f4").max, "<f4")
    got = SplitSource(save(tmp_path, huge, ids, labels, log=False)).read(0, 1000)
    np.testing.assert_array_equal(got[0], huge)


def test_any_range_is_the_slice(tmp_path):
    dense, ids, labels = arrays(70_001)
    source = SplitSource(save(tmp_path, dense, ids, labels))
    whole = source.read(0, 70_001)
    for start, stop in ((0, 1), (70_000, 70_001), (5, 5), (21_845, 21_846), (1, 65_537)):
        for got, want in zip(source.read(start, stop), whole):
            np.testing.assert_array_equal(got, want[start:stop])
    for start, stop in ((-1, 3), (3, 2), (0, 70_002)):
        with pytest.raises(IndexError):
            source.read(start, stop)


def test_five_keys_of_the_benchmark(tmp_path):
    dense, ids, labels = arrays(100)
    save(tmp_path, dense, ids, labels)
    content = json.loads((tmp_path / "metadata.json").read_text())
    del content["dense_log_offset"]
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    source = SplitSource(tmp_path)
    assert (source.num_samples, source.num_dense, source.vocab_sizes) == (100, 3, SIZES)
    np.testing.assert_allclose(source.read(0, 100)[0], np.log(dense + 3.0), rtol=3e-7, atol=3e-7)


def test_ids_outside_the_table_are_not_this_modules_business(tmp_path):
    dense, ids, labels = arrays(10)
    ids[3, 2] = -7
    assert SplitSource(save(tmp_path, dense, ids, labels)).read(0, 10)[1][3, 2] == -7


def test_id_types():
    sizes = (1, 126, 127, 32766, 32767, 2**31 - 2)
    assert [id_type(size) for size in sizes] == ["int8", "int8", "int16", "int16", "int32", "int32"]
    with pytest.raises(ValueError, match="expected less than 2147483647"):
        id_type(2**31 - 1)


def test_per_category(tmp_path):
    dense, ids, labels = arrays(10_001)
    dense = (dense / 100).astype(np.float16)
    source = open_split(save_per_category(tmp_path, dense, ids, labels), per_category=True)
    assert (source.num_samples, source.num_dense, source.vocab_sizes) == (10_001, 3, SIZES)
    for start, stop in ((0, 10_001), (4095, 8200), (10_000, 10_001), (7, 7)):
        got = source.read(start, stop)
        check_types(*got)
        np.testing.assert_array_equal(got[0], dense[start:stop].astype(np.float32))
        np.testing.assert_array_equal(got[1], ids[start:stop])
        np.testing.assert_array_equal(got[2], labels[start:stop])


def test_beyond_two_gibibytes(tmp_path):
    """Sparse files: a last sample whose offset does not fit 32 bits."""
    samples = 2**32 // (4 * len(SIZES)) + 5
    for name, width in (("label", 1), ("dense", 3), ("category", len(SIZES))):
        with open(tmp_path / f"{name}.bin", "wb") as file:
            file.seek((samples - 1) * 4 * width)
            file.write(np.arange(1, 1 + width, dtype="<i4").tobytes())
    write_metadata(tmp_path, Metadata(SIZES, "int32", "int32", "int32", False, 3))
    source = SplitSource(tmp_path)
    assert source.num_samples == samples
    dense, ids, labels = source.read(samples - 2, samples)
    np.testing.assert_array_equal(dense, [[0, 0, 0], [1, 2, 3]])
    np.testing.assert_array_equal(ids, [[0] * 6, [1, 2, 3, 4, 5, 6]])
    np.testing.assert_array_equal(labels, [0, 1])


# --- synthetic


def test_synthetic_sample_depends_on_seed_and_number_alone():
    source = SyntheticSource((3, 1, 10_000), 4, 5000, seed=7)
    whole = source.read(0, 5000)
    check_types(*whole)
    for start, stop in ((0, 1), (1023, 1025), (4999, 5000), (17, 3333), (9, 9)):
        for got, want in zip(source.read(start, stop), whole):
            np.testing.assert_array_equal(got, want[start:stop])
    longer = SyntheticSource((3, 1, 10_000), 4, 9000, seed=7).read(0, 5000)
    for got, want in zip(longer, whole):
        np.testing.assert_array_equal(got, want)
    for seed in (8, -1, 2**64 + 1):
        other = SyntheticSource((3, 1, 10_000), 4, 5000, seed=seed).read(0, 5000)
        assert (other[1][:, 2] == whole[1][:, 2]).mean() < 0.01


def test_synthetic_is_splitmix_of_plain_integers():
    """The same stream from Python's own integers."""
    word = 2**64 - 1

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
        return x ^ (x >> 31)

    stride, seed = 0x9E3779B97F4A7C15, 11
    place = mix((seed + stride) & word)
    first = mix((place + stride) & word)
    stream = mix(((first ^ place) + stride) & word)
    labels = SyntheticSource((5,), 1, 100, seed).read(0, 100)[2]
    want = [mix((number * stride + stream) & word) >> 63 for number in range(100)]
    np.testing.assert_array_equal(labels, want)


def test_synthetic_is_uniform_and_unrelated():
    samples, sizes = 100_000, (2, 5, 1000, 40_000_000, 2**31)
    dense, ids, labels = SyntheticSource(sizes, 3, samples, seed=3).read(0, samples)
    assert abs(labels.mean() - 0.5) < 0.01
    assert dense.min() >= 0
    assert dense.max() < 1
    assert ids.min() >= 0
    assert (ids.max(axis=0) < np.array(sizes)).all()
    for table, size in enumerate(sizes[:3]):
        counts = np.bincount(ids[:, table], minlength=size)
        chi = ((counts - samples / size) ** 2 / (samples / size)).sum()
        assert abs(chi - (size - 1)) < 6 * np.sqrt(2 * size)
    columns = np.column_stack([labels, dense, ids / np.array(sizes)])
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    for shift in (0, 1):
        pairs = np.einsum("ni,nj->ij", columns[shift:], columns[: samples - shift]) / samples
        expected = np.eye(9) if shift == 0 else 0
        assert np.abs(pairs - expected).max() < 6 / np.sqrt(samples)


def test_synthetic_defaults_are_the_benchmarks():
    defaults = SyntheticConfig()
    assert sum(defaults.synthetic_dataset_table_sizes) == 1_221_286
    assert len(defaults.synthetic_dataset_table_sizes) == 26
    assert defaults.samples == (5242880, 1310720)


# --- batches


@pytest.mark.parametrize("drop", [True, False])
def test_batches_against_slices(drop):
    for samples in (1, 5, 12, 24, 25, 47, 48, 49):
        for size in (1, 2, 3, 4):
            for global_batch in (12, 24, 60):
                if drop and global_batch > samples:
                    continue
                compare_with_slices(samples, global_batch, size, drop)


def compare_with_slices(samples, global_batch, size, drop):
    source, local = Slices(samples), global_batch // size
    steps = samples // global_batch if drop else -(-samples // global_batch)
    dense, ids, labels = source.read(0, samples)
    source.reads[:] = 0
    for rank in range(size):
        batches = Batches(source, global_batch, rank, size, drop_remainder=drop)
        assert len(batches) == steps
        got = list(batches)
        assert len(got) == steps
        for step, batch in enumerate(got):
            rows = np.arange(local) + step * global_batch + rank * local
            real = rows[rows < samples]
            assert batch.valid == len(real)
            for part, whole in zip(batch, (dense, ids, labels)):
                assert part.shape == (local, *whole.shape[1:])
                np.testing.assert_array_equal(part[: len(real)], whole[real])
                assert not part[len(real) :].any()
            check_types(*batch[:3])
    covered = steps * global_batch if drop else samples
    np.testing.assert_array_equal(source.reads, np.arange(samples) < covered)


@pytest.mark.parametrize(("lookahead", "readers"), [(0, 1), (1, 1), (5, 3), (100, 4)])
def test_order_with_any_lookahead_and_readers(lookahead, readers):
    class Uneven(Slices):
        def read(self, start, stop):
            time.sleep(0.003 * (start // 4 % 3))
            return super().read(start, stop)

    batches = Batches(
        Uneven(40), 4, 0, 1, drop_remainder=True, lookahead=lookahead, readers=readers
    )
    for _ in range(2):
        assert [int(batch.ids[0, 0]) for batch in batches] == list(range(0, 40, 4))


def test_first_step_resumes():
    whole = list(Batches(Slices(50), 12, 1, 2, drop_remainder=False))
    for first in range(6):
        batches = Batches(Slices(50), 12, 1, 2, drop_remainder=False).starting_at(first)
        assert (len(batches), batches.steps) == (5 - first, 5)
        rest = list(batches)
        assert len(rest) == 5 - first
        for got, want in zip(rest, whole[first:]):
            np.testing.assert_array_equal(got.ids, want.ids)
            assert got.first == want.first
            assert not want.valid or want.first == want.ids[0, 0]
    with pytest.raises(ValueError, match="first step: expected 0 to 5"):
        Batches(Slices(50), 12, 1, 2, drop_remainder=False).starting_at(6)


def test_a_subset_is_the_first_steps_rounded_up():
    for subset, steps in ((1.0, 4), (0.75, 3), (0.5, 2), (0.51, 3), (0.001, 1)):
        batches = Batches(Slices(50), 12, 0, 1, drop_remainder=True, subset=subset)
        assert len(batches) == batches.steps == steps
        assert [batch.first for batch in batches] == [0, 12, 24, 36][:steps]
        assert batches.num_samples == (50 if subset == 1 else 12 * steps)


def test_batches_in_a_random_order():
    def firsts(epoch=0, seed=3, rank=0, start=0, **options):
        batches = Batches(
            Slices(1200), 12, rank, 2, drop_remainder=True, order_seed=seed, **options
        )
        return [batch.first for batch in batches.in_epoch(epoch).starting_at(start)]

    order = firsts()
    assert sorted(order) == list(range(0, 1200, 12)), "each batch once"
    assert order == firsts()
    assert [first + 6 for first in order] == firsts(rank=1), "all ranks read the same batch"
    assert firsts(start=37) == order[37:], "a resumed epoch goes on in its order"
    assert len({tuple(firsts(epoch, seed)) for epoch in range(3) for seed in (-1, 3, 4)}) == 9
    assert sorted(firsts(subset=0.1)) == list(range(0, 120, 12)), "the subset is that of no order"


def test_no_place_is_preferred_by_the_random_order():
    places = np.array([batch_order(16, 5, epoch) for epoch in range(4000)])  # [epochs, places]
    counts = np.array([np.bincount(column, minlength=16) for column in places.T])
    chi = ((counts - 250) ** 2 / 250).sum()  # 15 * 15 degrees of freedom
    assert abs(chi - 225) < 6 * np.sqrt(2 * 225)


def test_the_fingerprint_of_a_file_sees_other_content(tmp_path):
    """Small files whole, large ones in blocks that include both ends."""
    for values in (3, 2_000_000, 20_000_000):
        data = np.arange(values, dtype="<i4")
        prints = set()
        for change in (None, 0, -1):
            changed = data.copy()
            if change is not None:
                changed[change] += 1
            changed.tofile(tmp_path / "a.bin")
            prints.add(ColumnFile(tmp_path / "a.bin", "int32", 1).fingerprint)
        data[::-1].tofile(tmp_path / "a.bin")
        prints.add(ColumnFile(tmp_path / "a.bin", "int32", 1).fingerprint)
        data[:-1].tofile(tmp_path / "a.bin")
        prints.add(ColumnFile(tmp_path / "a.bin", "int32", 1).fingerprint)
        assert len(prints) == 5
        data.tofile(tmp_path / "b.bin")
        same = [ColumnFile(tmp_path / "b.bin", "int32", 1).fingerprint for _ in range(2)]
        assert same[0] == same[1]


def test_reading_runs_ahead_but_not_further_than_asked():
    source = Slices(100)
    iterator = iter(Batches(source, 10, 0, 1, drop_remainder=True, lookahead=2))
    next(iterator)
    deadline = time.monotonic() + 10
    while source.reads.sum() < 30 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert source.reads.sum() == 30
    iterator.close()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ((10, 0, 3), r"multiple of the 3 ranks, found 10; set --global_batch_size=9"),
        ((0, 0, 2), "found 0"),
        ((-2, 0, 2), "found -2"),
        ((200, 0, 2), "at most the 100 training samples, found 200; lower --global_batch_size"),
        ((10, 2, 2), "expected a rank from 0 to 1, found 2"),
        ((10, 0, 0), "rank"),
    ],
)
def test_bad_batches_are_refused_before_the_first_step(arguments, pattern):
    with pytest.raises(ValueError, match=pattern) as error:
        Batches(Slices(100), *arguments, drop_remainder=True)
    assert "\n" not in str(error.value)


def test_an_evaluation_may_be_smaller_than_a_batch():
    batches = Batches(Slices(5), 8, 1, 2, drop_remainder=False)
    assert [batch.valid for batch in batches] == [1]


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("dataset")]


def test_breaking_off_leaves_no_thread():
    batches = Batches(Slices(1000), 10, 0, 1, drop_remainder=True, readers=2)
    for _ in batches:
        assert reader_threads()
        break
    gc.collect()
    assert reader_threads() == []
    iterator = iter(batches)
    next(iterator)
    assert reader_threads()
    iterator.close()
    assert reader_threads() == []
    assert len(list(batches)) == 100
    assert reader_threads() == []


def test_errors_of_the_reader_reach_the_consumer():
    class Failing(Slices):
        def read(self, start, stop):
            if start >= 30:
                raise ValueError("file: expected this, found that")
            return super().read(start, stop)

    seen = []
    batches = Batches(Failing(100), 10, 0, 1, drop_remainder=True)
    with pytest.raises(ValueError, match="found that"):
        seen.extend(batch.ids[0, 0] for batch in batches)
    assert seen == [0, 10, 20]
    assert reader_threads() == []


# --- bad files


def fails(folder, pattern, per_category=False, kind=ValueError):
    with pytest.raises(kind, match=pattern) as error:
        open_split(folder, per_category)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["label.bin", "dense.bin", "category.bin"])
@pytest.mark.parametrize("explicit", [True, False])
def test_sizes_that_disagree(tmp_path, name, explicit):
    changes = {"num_dense": 3} if explicit else {}
    for cut in (1, 4, 12, 24, 600):
        path = save(tmp_path, *arrays(100), **changes) / name
        size = path.stat().st_size
        if cut >= size:
            continue
        os.truncate(path, size - cut)
        fails(tmp_path, r"\.bin: expected .*\d+ bytes.*found \d+ bytes; write .*split_bin\.py")
        os.truncate(path, size + cut)
        fails(tmp_path, r"\.bin: expected .*\d+ bytes.*found \d+ bytes; write .*split_bin\.py")
    os.truncate(path, 0)
    fails(tmp_path, r"\.bin: expected .*found")


def test_an_error_states_what_was_expected(tmp_path):
    save(tmp_path, *arrays(100), num_dense=3)
    os.truncate(tmp_path / "category.bin", 2396)
    want = (
        r"category\.bin: expected 100 samples \(label\.bin's\) of 24 bytes = 2400 bytes, found 2396"
    )
    fails(tmp_path, want)


@pytest.mark.parametrize("name", ["label.bin", "dense.bin", "category.bin", "metadata.json"])
def test_missing_files(tmp_path, name):
    save(tmp_path, *arrays(10))
    (tmp_path / name).unlink()
    fails(tmp_path, f"{name}: no such file; write", kind=FileNotFoundError)
    fails(tmp_path / "none", "no such file; write", kind=FileNotFoundError)


def test_float_ids_are_refused(tmp_path):
    save(tmp_path, *arrays(10), category_raw_type="float32")
    fails(tmp_path, r"category_raw_type: expected int32, found float32, .*; store ids as int32")


def test_per_category_sizes_that_disagree(tmp_path):
    save_per_category(tmp_path, *arrays(100))
    for name in ("dense.bin", "category_0.bin", "category_5.bin"):
        path = tmp_path / name
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        fails(tmp_path, rf"{name}: expected .*found {len(content) - 1} bytes", True)
        path.write_bytes(content)
    (tmp_path / "category_2.bin").unlink()
    fails(tmp_path, r"category_2\.bin: no such file", True, FileNotFoundError)


@pytest.mark.parametrize(
    ("kind", "log", "bad", "found"),
    [
        ("<i4", True, -3, r"ln\(-3 \+ 3\) = -inf"),
        ("<i4", True, -4, r"ln\(-4 \+ 3\) = nan"),
        ("<f4", True, np.inf, r"ln\(inf \+ 3\) = inf"),
        ("<f4", True, np.nan, r"ln\(nan \+ 3\) = nan"),
        ("<f4", False, np.nan, "nan"),
        ("<f4", False, -np.inf, "-inf"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_dense_value_that_is_not_finite_is_named(tmp_path, kind, log, bad, found):
    dense, ids, labels = arrays(50_000)
    dense = dense.astype(kind)
    dense[30_017, 1] = bad
    source = SplitSource(save(tmp_path, dense, ids, labels, log=log))
    want = rf"dense\.bin: record 30017, dense column 1: expected a finite value, found {found};"
    with pytest.raises(ValueError, match=want):
        source.read(25_000, 50_000)
    source.read(0, 30_017)
    source.read(30_018, 50_000)


@pytest.mark.parametrize(("kind", "bad"), [("<i4", 2), ("<i4", -1), ("<f4", 0.5), ("<f4", np.nan)])
def test_a_label_that_is_no_label_is_named(tmp_path, kind, bad):
    dense, ids, labels = arrays(1000)
    labels = labels.astype(kind)
    labels[717] = bad
    source = SplitSource(save(tmp_path, dense, ids, labels))
    want = rf"label\.bin: record 717: expected label 0 or 1, found {bad};"
    with pytest.raises(ValueError, match=want):
        source.read(700, 1000)


def test_per_category_values_are_checked(tmp_path):
    dense, ids, labels = arrays(100)
    dense = dense.astype(np.float16)
    dense[40, 2] = np.nan
    source = PerCategorySource(save_per_category(tmp_path, dense, ids, labels))
    with pytest.raises(ValueError, match="record 40, dense column 2: .* found nan"):
        source.read(30, 50)
    with open(tmp_path / "label.bin", "r+b") as file:
        file.seek(3)
        file.write(b"\x02")
    with pytest.raises(ValueError, match="record 3: expected label 0 or 1, found 2"):
        source.read(0, 10)


@pytest.mark.parametrize("name", ["label.bin", "dense.bin", "category.bin"])
def test_a_file_that_is_cut_while_open(tmp_path, name):
    source = SplitSource(save(tmp_path, *arrays(1000)))
    batches = iter(Batches(source, 100, 0, 1, drop_remainder=True, lookahead=1))
    next(batches)
    size = (tmp_path / name).stat().st_size
    os.truncate(tmp_path / name, size // 2 + 1)
    pattern = rf"{name}: expected {size} bytes .*found its end at byte {size // 2 + 1}"
    with pytest.raises(ValueError, match=pattern):
        list(batches)
    assert reader_threads() == []
