"""CRC-32 bit by bit, joined pieces, and every malformed `checksums.json`."""

from __future__ import annotations

import json
import os
import zlib

import numpy as np
import pytest

from dlrm.formats import checksums
from dlrm.formats.checksums import (
    FileSum,
    RunningSum,
    combine,
    read_checksums,
    write_checksums,
)


def crc_by_definition(data: bytes) -> int:
    """Division bit by bit, as the standard (ISO 3309) words it; nothing of zlib."""
    register = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            feedback = (register ^ byte >> bit) & 1
            register = register >> 1 ^ (0xEDB88320 if feedback else 0)
    return register ^ 0xFFFFFFFF


def test_known_values(tmp_path):
    # The check value of every catalogue of CRCs.
    assert crc_by_definition(b"123456789") == 0xCBF43926
    for data, want in ((b"123456789", "cbf43926"), (b"", "00000000"), (b"\x00" * 32, "190a55ad")):
        (tmp_path / "f").write_bytes(data)
        assert checksums.sum_of(tmp_path / "f").crc32 == want == f"{crc_by_definition(data):08x}"


@pytest.mark.parametrize("size", [1, 4 << 20, (4 << 20) + 1, (9 << 20) - 3])
def test_a_file_of_several_pieces(tmp_path, size):
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "f").write_bytes(data)
    assert checksums.sum_of(tmp_path / "f") == FileSum(size, f"{zlib.crc32(data):08x}")


def test_running_sum_counts_bytes_not_items():
    values = np.arange(1000, dtype=np.int32)
    running = RunningSum()
    for start in range(0, 1000, 300):
        running.update(values[start : start + 300].data)
    assert running.value == FileSum(4000, f"{zlib.crc32(values.tobytes()):08x}")


def test_combine_is_the_sum_of_the_joined_pieces():
    seed = 3
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(100):
        a, b, c = (rng.bytes(int(rng.integers(0, 70))) for _ in range(3))
        ab = combine(crc_by_definition(a), crc_by_definition(b), len(b))
        assert ab == crc_by_definition(a + b)
        assert combine(ab, zlib.crc32(c), len(c)) == crc_by_definition(a + b + c)


def test_combine_far_beyond_memory():
    """5 TiB of zeros are 2^40 * 5 zero bytes; doubling a run of zeros takes no reading."""
    run, size = zlib.crc32(b"\0"), 1
    for _ in range(40):
        run, size = combine(run, run, size), 2 * size
    five = run
    for _ in range(4):
        five = combine(five, run, size)
    # Associativity: the same bytes, joined from the other end.
    other = run
    for count in range(1, 5):
        other = combine(run, other, count * size)
    assert five == other
    assert combine(zlib.crc32(b"abc"), five, 5 * size) != five


SUMS = {"label.bin": FileSum(123, "0a1b2c3d"), "dense.bin": FileSum(0, "00000000")}


def test_round_trip_and_the_text(tmp_path):
    assert read_checksums(tmp_path) is None
    write_checksums(tmp_path, SUMS)
    assert read_checksums(tmp_path) == SUMS
    assert os.listdir(tmp_path) == ["checksums.json"]
    assert json.loads((tmp_path / "checksums.json").read_text()) == {
        "algorithm": "crc32",
        "files": {
            "label.bin": {"bytes": 123, "crc32": "0a1b2c3d"},
            "dense.bin": {"bytes": 0, "crc32": "00000000"},
        },
    }
    checksums.remove_checksums(tmp_path)
    checksums.remove_checksums(tmp_path)
    assert read_checksums(tmp_path) is None


ENTRY = {"bytes": 1, "crc32": "00000000"}


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, found a list"),
        ({"files": {}}, "algorithm: expected crc32, found None"),
        ({"algorithm": "md5", "files": {}}, "found 'md5'"),
        ({"algorithm": "crc32"}, "files: expected an object by name, found None"),
        ({"algorithm": "crc32", "files": {"../x": ENTRY}}, "found '../x'"),
        ({"algorithm": "crc32", "files": {"x": {**ENTRY, "bytes": -1}}}, "x: expected"),
        ({"algorithm": "crc32", "files": {"x": {**ENTRY, "bytes": True}}}, "x: expected"),
        ({"algorithm": "crc32", "files": {"x": {**ENTRY, "crc32": "0A1B2C3D"}}}, "0A1B2C3D"),
        ({"algorithm": "crc32", "files": {"x": {**ENTRY, "crc32": "0a1b2c3"}}}, "0a1b2c3"),
        ({"algorithm": "crc32", "files": {"x": {**ENTRY, "crc32": 7}}}, "x: expected"),
        ({"algorithm": "crc32", "files": {"x": {"bytes": 1}}}, "x: expected"),
        ({"algorithm": "crc32", "files": {"x": 5}}, "found 5"),
    ],
)
def test_malformed_is_one_line_with_the_remedy(tmp_path, content, pattern):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "checksums.json").write_text(text)
    with pytest.raises(ValueError, match="checksums.json: ") as caught:
        read_checksums(tmp_path)
    message = str(caught.value)
    assert pattern in message
    assert "\n" not in message
    assert "write the folder again, or remove the file" in message
