"""Packed ids against decoders written by hand, and through the real files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm.data import SplitSource
from dlrm.data.split import split
from dlrm.formats.packed_ids import MLPERF_VOCAB_SIZES, Field, Packing, plan
from dlrm.formats.records import RecordLayout
from tests.support.processes import ROOT

MLPERF = plan(MLPERF_VOCAB_SIZES)


def compress_by_hand(f: list[int]) -> list[int]:
    """MLPerf inference v3.0, `compress_to16`, word by word as the format's description has it."""
    return [
        f[0],
        f[1] << 16 | f[2],
        f[3] << 16 | f[4],
        f[6] << 16 | f[7],
        f[9],
        f[10],
        f[11],
        f[13] << 16 | f[14],
        f[5] << 24 | f[8] << 16 | f[12] << 8 | f[15],
        f[16] << 24 | f[17] << 8 | f[18],
        f[19],
        f[20],
        f[21],
        f[22],
        f[23] << 16 | f[24] << 8 | f[25],
        0,
    ]


def decode_by_hand(w: list[int]) -> list[int]:
    """The inverse, on unsigned words; w9 as the description says it."""
    f = [0] * 26
    f[0], f[9], f[10], f[11] = w[0], w[4], w[5], w[6]
    f[19], f[20], f[21], f[22] = w[10], w[11], w[12], w[13]
    for word, (high, low) in {1: (1, 2), 2: (3, 4), 3: (6, 7), 7: (13, 14)}.items():
        f[high], f[low] = w[word] >> 16, w[word] & 0xFFFF
    f[5], f[8], f[12], f[15] = w[8] >> 24, w[8] >> 16 & 0xFF, w[8] >> 8 & 0xFF, w[8] & 0xFF
    f[16], f[17], f[18] = w[9] >> 24, (w[9] >> 8) & 0xFFFF, w[9] & 0xFF
    f[23], f[24], f[25] = w[14] >> 16, w[14] >> 8 & 0xFF, w[14] & 0xFF
    return f


def random_ids(samples, sizes, seed):
    print(f"seed {seed}")
    ids = np.random.default_rng(seed).integers(0, sizes, (samples, len(sizes))).astype(np.int32)
    ids[0], ids[-1] = 0, np.array(sizes) - 1
    return ids


def test_the_mlperf_layout_bit_by_bit():
    ids = random_ids(500, MLPERF_VOCAB_SIZES, 1)
    words = MLPERF.pack(ids)
    assert words.dtype == np.int32
    assert words.view(np.uint32).tolist() == [compress_by_hand(row) for row in ids.tolist()]
    assert MLPERF.unpack(words).tolist() == ids.tolist()


def test_any_word_is_decoded_as_unsigned():
    """Also those that no id of the vocabulary makes: the top bit is no sign."""
    words = np.random.default_rng(2).integers(-(2**31), 2**31, (500, 16)).astype(np.int32)
    words[0] = -1
    whole = (0, 9, 10, 11, 19, 20, 21, 22)  # int32 ids that fill their word
    for row, got in zip(words.view(np.uint32).tolist(), MLPERF.unpack(words).tolist()):
        want = decode_by_hand(row)
        assert [got[t] & 0xFFFFFFFF if t in whole else got[t] for t in range(26)] == want
    assert MLPERF.unpack(words)[0, 16] == 255
    assert MLPERF.unpack(words)[0, 17] == 65535


# Sizes at and around the borders of bytes, and any others.
SIZES = st.lists(
    st.one_of(
        st.sampled_from([1, 2, 255, 256, 257, 65535, 65536, 65537, 1 << 24, 1 << 31]),
        st.integers(1, 1 << 31),
        st.integers(1, 5000),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes=SIZES)
def test_any_vocabulary(sizes):
    packing = plan(sizes)
    packing.check(sizes)
    assert all(shift % 8 == 0 and bits % 8 == 0 for _, shift, bits in packing.fields)
    # Independently: the least number of words that items of 1 to 4 bytes need.
    width = [max(1, math.ceil(math.log2(size) / 8)) for size in sizes]
    threes = width.count(3)
    rest = 2 * width.count(2) + max(0, width.count(1) - threes)
    assert packing.words == width.count(4) + threes + math.ceil(rest / 4)
    ids = random_ids(9, sizes, 3)
    words = packing.pack(ids)
    assert words.shape == (9, packing.words)
    for row, packed in zip(ids.tolist(), words.view(np.uint32).tolist()):
        by_hand = [0] * packing.words
        for value, (word, shift, _) in zip(row, packing.fields):
            by_hand[word] += value << shift
        assert packed == by_hand
    assert packing.unpack(words).tolist() == ids.tolist()


def test_the_kaggle_vocabulary_takes_half():
    """Eight tables need three bytes, eight one, ten two: 8 + 5 words."""
    sizes = (
        *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
        *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
    )
    assert plan(sizes).words == 13


@pytest.mark.parametrize("table", range(26))
def test_ids_without_a_place_are_refused(table):
    limit = 1 << MLPERF.fields[table].bits
    for bad in [-1] + [limit] * (limit < 1 << 31):
        ids = random_ids(70, MLPERF_VOCAB_SIZES, 4)
        ids[33, table] = bad
        with pytest.raises(ValueError, match=f"sample 33, table {table}: .* found {bad};"):
            MLPERF.pack(ids)


def test_where_it_writes():
    ids = random_ids(5, (300, 4), 5)
    packing = plan((300, 4))
    rows = np.full((9, 1), -7, np.int32)
    assert packing.pack(ids, rows[2:7]).base is not None
    assert (rows[[0, 1, 7, 8]] == -7).all()
    out = np.full((9, 2), -7, np.int32)
    packing.unpack(rows[2:7], out[2:7])
    assert (out[[0, 1, 7, 8]] == -7).all()
    np.testing.assert_array_equal(out[2:7], ids)
    # Columns of a wider array, not next to each other in memory.
    wide = np.concatenate([ids, ids], 1)
    np.testing.assert_array_equal(packing.pack(wide[:, 2:]), rows[2:7])


def test_content_round_trips_through_json():
    for packing in (MLPERF, plan((3, 70000, 9)), Packing(3, (Field(2, 5, 7),))):
        assert Packing.from_json(json.loads(json.dumps(packing.to_json()))) == packing
    assert MLPERF.to_json()["words"] == 16


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ([], "expected {"),
        ({"words": 1}, "expected {"),
        ({"words": True, "fields": [[0, 0, 8]]}, "expected {"),
        ({"words": 1, "fields": [[0, 0]]}, "expected {"),
        ({"words": 1, "fields": [[0, 0, 8.0]]}, "expected {"),
        ({"words": 1, "fields": [[1, 0, 8]]}, "found [1, 0, 8] for table 0"),
        ({"words": 1, "fields": [[-1, 0, 8]]}, "found [-1, 0, 8]"),
        ({"words": 1, "fields": [[0, 25, 8]]}, "found [0, 25, 8]"),
        ({"words": 1, "fields": [[0, -1, 8]]}, "found [0, -1, 8]"),
        ({"words": 1, "fields": [[0, 0, 0]]}, "found [0, 0, 0]"),
        ({"words": 1, "fields": [[0, 0, 8], [0, 7, 8]]}, "table 1 shares bits of word 0"),
        ({"words": 1, "fields": [[0, 0, 8], [0, 8, 8]]}, "expected 3 fields"),
        ({"words": 2, "fields": [[0, 0, 8], [0, 8, 4], [1, 0, 32]]}, "for 100 ids in table 1"),
    ],
)
def test_malformed_is_one_line(tmp_path, content, pattern):
    split_folder(tmp_path, "a", 50)
    path = tmp_path / "a" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "packed_ids": content}))
    with pytest.raises(ValueError, match=r"metadata.json: packed_ids: ") as caught:
        SplitSource(tmp_path / "a")
    assert pattern in str(caught.value)
    assert "\n" not in str(caught.value)


RECORD_SIZES = (4, 100, 70_000)


def split_folder(folder, name, samples, **options):
    rng = np.random.default_rng(6)
    values = np.empty((samples, 6), "<i4")
    values[:, 0] = rng.integers(0, 2, samples)
    values[:, 1:3] = rng.integers(0, 50, (samples, 2))
    values[:, 3:] = rng.integers(0, RECORD_SIZES, (samples, 3))
    (folder / "train_data.bin").write_bytes(values.tobytes())
    layout = RecordLayout(2, 3, RECORD_SIZES)
    split(folder / "train_data.bin", folder / name, layout, **options)
    return values


# Beyond a group of blocks of the split and a block of the reader.
@pytest.mark.parametrize("samples", [1, 43_691, 200_003])
def test_packed_and_plain_folders_read_alike(tmp_path, samples):
    values = split_folder(tmp_path, "plain", samples)
    split_folder(tmp_path, "packed", samples, pack_ids=True)
    plain, packed = SplitSource(tmp_path / "plain"), SplitSource(tmp_path / "packed")
    assert packed.vocab_sizes == plain.vocab_sizes
    # One of three bytes and one of one byte share a word, the other has its own.
    assert os.path.getsize(tmp_path / "packed" / "category.bin") == samples * 4 * 2
    for start, stop in ((0, samples), (samples // 2, samples), (samples // 3, samples // 2)):
        dense, ids, labels = packed.read(start, stop)
        assert ids.flags.c_contiguous
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, values[start:stop, 3:])
        np.testing.assert_array_equal(dense, plain.read(start, stop)[0])
        np.testing.assert_array_equal(labels, values[start:stop, 0])


def test_the_split_packs_the_mlperf_vocabulary(tmp_path):
    ids = random_ids(300, MLPERF_VOCAB_SIZES, 7)
    values = np.concatenate([np.ones((300, 14), np.int32), ids], axis=1)
    (tmp_path / "train_data.bin").write_bytes(values.tobytes())
    command = [sys.executable, str(ROOT / "split_bin.py"), str(tmp_path / "train_data.bin")]
    sizes = ("--slot_size_array", json.dumps(MLPERF_VOCAB_SIZES))
    done = subprocess.run([*command, str(tmp_path / "out"), *sizes, "--pack_ids"], timeout=60)
    assert done.returncode == 0
    words = np.fromfile(tmp_path / "out" / "category.bin", "<u4").reshape(300, 16)
    assert words.tolist() == [compress_by_hand(row) for row in ids.tolist()]
    np.testing.assert_array_equal(SplitSource(tmp_path / "out").read(0, 300)[1], ids)


def test_the_split_refuses_to_pack_ids_of_unknown_sizes(tmp_path):
    (tmp_path / "train_data.bin").write_bytes(np.ones((5, 40), "<i4").tobytes())
    command = [sys.executable, str(ROOT / "split_bin.py"), str(tmp_path / "train_data.bin")]
    done = subprocess.run(
        [*command, str(tmp_path / "out"), "--pack_ids"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: --pack_ids: expected the vocabulary sizes")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
