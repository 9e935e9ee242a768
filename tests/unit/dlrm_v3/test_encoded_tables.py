"""Tables of checkpoints in memory: rows of each encoding, ids, damage, and memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlrm.checkpoint.manifest import ModelShape, read_manifest
from dlrm_v3.encoded_tables import EncodedTable, read_tables
from tests.support.checkpoints import write_checkpoint

pytestmark = pytest.mark.one_profile

SIZES, WIDTH = (1000, 3, 37), 6
NAMES = ("items", "categories", "users")
ROWS = np.random.default_rng(8).normal(size=(sum(SIZES), WIDTH)).astype(np.float32)


def written(folder: Path, rows: np.ndarray = ROWS, ranks: int = 1) -> Path:
    shape = ModelShape(None, SIZES, WIDTH, None, None)
    return write_checkpoint(folder / "checkpoint", shape, rows, {}, ranks=ranks)


def read(checkpoint: Path, encoding: str = "float32") -> list[EncodedTable]:
    return read_tables(checkpoint, read_manifest(checkpoint), NAMES, encoding)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("encoding", "levels"), [("float32", 0), ("int8", 255), ("int4", 15)])
def test_vectors_are_the_rows_up_to_half_a_step(
    tmp_path: Path, encoding: str, levels: int, ranks: int
) -> None:
    tables = read(written(tmp_path, ranks=ranks), encoding)
    first = 0
    for table, size in zip(tables, SIZES):
        ids = np.random.default_rng(3).integers(0, size, 200)
        expected = ROWS[first + ids].astype(np.float64)
        found = table.lookup(ids)
        assert found.dtype == np.float32
        if levels:
            step = (expected.max(axis=1) - expected.min(axis=1)) / levels
            rounding = 0 if encoding == "int8" else 2e-3 * abs(expected).max(axis=1) + 1e-2 * step
            assert (abs(found - expected).max(axis=1) <= 0.501 * step + rounding).all()
            assert (found != expected).any()
        else:
            np.testing.assert_array_equal(found, ROWS[first + ids])
        first += size


@pytest.mark.parametrize("bad", [-1, 37])
def test_an_id_outside_its_table_is_named(tmp_path: Path, bad: int) -> None:
    users = read(written(tmp_path))[2]
    with pytest.raises(ValueError, match=f"users: expected an id from 0 to 36, found {bad}"):
        users.lookup(np.array([0, bad, 5]))


def test_rows_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[SIZES[0] + SIZES[1] + 4, 2] = np.inf
    with pytest.raises(ValueError, match="users: row 4: expected finite values"):
        read(written(tmp_path, rows))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    checkpoint = written(tmp_path)
    path = checkpoint / "tables-00000-of-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name):
        read(checkpoint)


def test_tables_that_do_not_fit_into_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = sum(SIZES) * (WIDTH // 2 + 4)  # of int4
    monkeypatch.setattr("dlrm_v3.encoded_tables.free_host_memory", lambda: need)
    checkpoint = written(tmp_path)
    assert len(read(checkpoint, "int4")) == 3
    with pytest.raises(ValueError, match="free memory for the tables as int8.*--sparse-quant"):
        read(checkpoint, "int8")


def test_a_checkpoint_of_other_tables_is_refused(tmp_path: Path) -> None:
    checkpoint = written(tmp_path)
    with pytest.raises(ValueError, match="expected tables of items, users, found 3"):
        read_tables(checkpoint, read_manifest(checkpoint), ("items", "users"), "float32")
