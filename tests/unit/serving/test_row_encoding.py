"""Rows in each encoding, beside the definition computed row by row in float64."""

from __future__ import annotations

import time

import numpy as np
import pytest

from serving.row_encoding import TABLE_TYPES, decode, encode, row_bytes, stored_spec, table_scale

WIDTH = 5


@pytest.fixture(name="rows")
def random_rows():
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    dice = np.random.default_rng(seed)
    return (dice.normal(size=(300, WIDTH)) * dice.choice([1e-4, 1, 30], (300, 1))).astype("f4")


@pytest.mark.parametrize("tables", TABLE_TYPES)
def test_what_is_stored_has_the_size_that_is_said(rows, tables):
    stored = encode(tables, rows, np.full(len(rows), table_scale(abs(rows).max())))
    dtype, values = stored_spec(tables, WIDTH)
    assert stored.dtype == dtype
    assert stored.shape == (len(rows), values)
    assert stored.nbytes == len(rows) * row_bytes(tables, WIDTH)


def test_the_sizes_of_a_row():
    sizes = {tables: row_bytes(tables, 16) for tables in TABLE_TYPES}
    assert sizes == {"float32": 64, "float16": 32, "int8": 16, "int8_rows": 24}


def test_float32_is_exact_and_float16_rounds_once(rows):
    assert np.array_equal(decode("float32", encode("float32", rows)), rows)
    half = decode("float16", encode("float16", rows))
    assert half.dtype == np.float32
    assert np.all(abs(half - rows) <= abs(rows) * 2.0**-11 + 2.0**-25)


def test_a_magnitude_beyond_float16_becomes_infinite():
    assert np.isinf(encode("float16", np.array([[65520.0, 1]], np.float32))[0, 0])


def test_a_table_has_one_scale(rows):
    scale = float(abs(rows).max()) / 127.5
    scales = np.full(len(rows), table_scale(abs(rows).max()))
    assert scales[0] == pytest.approx(scale, rel=1e-7)
    stored = encode("int8", rows, scales)
    expected = np.clip(np.rint(rows.astype(np.float64) / scale), -128, 127)
    # Float32 may round a value that lies at a half to the other side.
    assert np.count_nonzero(stored != expected) <= 2
    assert abs(decode("int8", stored, scales) - rows).max() <= 0.502 * scale


def test_the_largest_magnitudes_take_both_ends():
    scales = np.full(1, table_scale(2.55))
    assert encode("int8", np.array([[2.55, -2.55, 0]], np.float32), scales).tolist() == [
        [127, -128, 0]
    ]


def test_a_table_of_zeros_stays_zero():
    assert table_scale(0) == 1
    zeros = np.zeros((2, 3), np.float32)
    assert not decode("int8", encode("int8", zeros, np.ones(2, np.float32)), np.ones(2)).any()


def test_a_row_has_its_own_scale_and_bias(rows):
    stored = encode("int8_rows", rows)
    for row, values in zip(rows.astype(np.float64), stored):
        scale, bias = np.frombuffer(values[WIDTH:].tobytes(), "<f4")
        assert scale == pytest.approx((row.max() - row.min()) / 255, rel=1e-6)
        assert bias == np.float32(row.min())
        assert values[np.argmin(row)] == 0
        assert values[np.argmax(row)] == 255
        again = values[:WIDTH] * float(scale) + float(bias)
        assert abs(again - row).max() <= 0.501 * scale
    decoded = decode("int8_rows", stored)
    assert decoded.dtype == np.float32
    assert np.all(abs(decoded - rows) <= 0.501 * (rows.max(1) - rows.min(1))[:, None] / 255 + 1e-9)


@pytest.mark.parametrize("value", [0.0, -3.25, 1e30])
def test_a_row_of_equal_values_is_exact(value):
    rows = np.full((2, WIDTH), value, np.float32)
    assert np.array_equal(decode("int8_rows", encode("int8_rows", rows)), rows)


def test_two_values_share_a_byte(rows):
    rows = rows[:, :4]
    stored = encode("int4_rows", rows)
    assert stored.shape == (len(rows), row_bytes("int4_rows", 4)) == (len(rows), 6)
    for row, values, decoded in zip(rows.astype(np.float64), stored, decode("int4_rows", stored)):
        scale, bias = (float(x) for x in np.frombuffer(values[2:].tobytes(), "<f2"))
        assert bias == np.float16(row.min())
        assert scale == pytest.approx((row.max() - bias) / 15, rel=2e-3, abs=2e-7)
        codes = [values[0] & 15, values[0] >> 4, values[1] & 15, values[1] >> 4]
        np.testing.assert_allclose(decoded, np.array(codes) * scale + bias, rtol=1e-6, atol=1e-12)
        # Half a step, and what the scale's and the bias's own rounding to float16 costs.
        bound = 0.5 * scale + 15 * 2.0**-11 * scale + abs(bias) * 2.0**-11 + 1e-6
        assert abs(decoded - row).max() <= bound


def test_the_layout_of_a_row_of_half_bytes():
    """FBGEMM's: low bits first, then scale and bias in float16."""
    stored = encode("int4_rows", np.array([[-1, 0, 2, 14]], np.float32))
    assert stored.tobytes() == bytes([0x10, 0xF3]) + np.array([1, -1], "<f2").tobytes()


@pytest.mark.parametrize("value", [0.0, 0.1, -3.25])
def test_a_row_of_equal_values_is_kept_in_half_bytes(value):
    rows = np.full((2, 4), value, np.float32)
    np.testing.assert_allclose(decode("int4_rows", encode("int4_rows", rows)), rows, rtol=1e-5)
