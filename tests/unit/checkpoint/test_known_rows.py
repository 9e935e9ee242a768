"""Rows of dynamic tables as an evaluation finds them: own, shared and initial ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm.checkpoint.__main__ import main
from dlrm.checkpoint.known_rows import KnownRows, initial_rows
from dlrm.checkpoint.manifest import read_manifest
from dlrm.checkpoint.table_reader import TableReader
from dlrm.embedding import FusedTable
from tests.support.dynamic_model import LARGEST, SIZES, DynamicModel
from tests.support.reference_known_ids import initial_row


@pytest.fixture(params=[True, False], ids=["shared", "initial"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> DynamicModel:
    return DynamicModel(tmp_path / "of", shares=request.param)


def test_the_checkpoint_is_read_in_stretches(case: DynamicModel) -> None:
    """Known and other keys, in pieces that are longer and shorter than what is asked for."""
    manifest = read_manifest(case.checkpoint)
    offsets = [0, *np.cumsum(SIZES)[:-1].tolist()]
    parts = [np.unique(ids).astype(np.int64) + first for ids, first in zip(case.ids, offsets)]
    keys = np.concatenate(parts)
    expected = np.concatenate(
        [case.reference.tables[t][part - offsets[t]] for t, part in enumerate(parts)]
    )
    with TableReader(case.checkpoint, manifest) as reader:
        known = KnownRows(reader, manifest)
        for rows in (1, 3, 1000):
            np.testing.assert_allclose(known.read(keys, rows), expected, rtol=1e-6)
        assert known.read(keys[:0], 3).shape == (0, 6)
        np.testing.assert_allclose(known.read(keys[-1:], 3), expected[-1:], rtol=1e-6)


def test_other_programs_get_the_known_ids(case: DynamicModel, tmp_path: Path) -> None:
    """Neither ids that wait for a row nor rows that are forgotten, though the files hold them."""
    assert main(["export", str(case.checkpoint), str(tmp_path / "out"), "--format=parquet"]) == 0
    for number, table in enumerate(case.reference.tables):
        found = pl.read_parquet(tmp_path / "out" / f"table_{number:03d}.parquet")
        assert found["id"].to_list() == sorted(table.known)
        np.testing.assert_array_equal(found["vector"].to_numpy(), table[found["id"].to_list()])


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 + 11])
def test_initial_rows_are_those_of_training(seed: int) -> None:
    """In NumPy and in TensorFlow bit for bit, and as their formula says."""
    sizes, width = (LARGEST, 7, LARGEST), 5
    keys = np.array([0, 1, LARGEST - 1, LARGEST, LARGEST + 6, LARGEST + 7, 2 * LARGEST + 6])
    found = initial_rows(keys, sizes, width, seed)
    np.testing.assert_array_equal(found, FusedTable(sizes, width, seed).initial(keys).numpy())
    places = [(0, 0), (1, 0), (LARGEST - 1, 0), (0, 1), (6, 1), (0, 2), (LARGEST - 1, 2)]
    expected = [initial_row(number, table, sizes, width, seed) for number, table in places]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
