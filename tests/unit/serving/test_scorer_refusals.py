"""What the scorer refuses: bad inputs, damaged or unfit artifacts, settings that cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import scorer_library
from serving.scorer import Scorer
from tests.support.artifacts import write_artifact
from tests.support.processes import run
from tests.support.scoring import SHAPE, opened, samples


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    ended = run(["make", "--directory=serving/core"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]


def test_raw_values_need_a_dictionary(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a")
    with opened(tmp_path / "a") as scorer, pytest.raises(ValueError, match="--dictionary"):
        scorer.score_raw(np.zeros((1, 3), np.int32), np.zeros((1, 3), np.int64))


def changed(array: Any, index: Any, value: Any) -> Any:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("dense", "ids", "message"),
    [
        ({}, {(5, 1): 3}, "sample 5, table 1: expected an id from 0 to 2, found 3"),
        ({}, {(0, 0): -1}, "sample 0, table 0: expected an id from 0 to 6, found -1"),
        ({}, {(69, 2): 2**31 - 1}, "sample 69, table 2: .* found 2147483647"),
        ({(2, 1): np.nan}, {}, "sample 2, dense column 1: expected a finite value, found nan"),
        ({(69, 0): -np.inf}, {}, "sample 69, dense column 0: .* found -inf"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, dense: Any, ids: Any, message: str) -> None:
    reference = write_artifact(tmp_path / "a")
    good = samples(reference, 70)
    bad = [array.copy() for array in good]
    for array, changes in zip(bad, (dense, ids)):
        for index, value in changes.items():
            array[index] = value
    with opened(tmp_path / "a") as scorer:
        expected = scorer.score(*good)
        with pytest.raises(ValueError, match=message):
            scorer.score(*bad)
        np.testing.assert_array_equal(scorer.score(*good), expected)


def test_bad_candidates_are_named(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a")
    dense, user, items = (
        np.zeros(3, np.float32),
        np.array([2], np.int32),
        np.zeros((4, 2), np.int32),
    )
    nan = np.full(3, np.nan, np.float32)
    with opened(tmp_path / "a") as scorer:
        for arguments, message in (
            ((dense, user + 1, items, [1]), "user, table 1: expected an id from 0 to 2, found 3"),
            ((dense, user, changed(items, (2, 1), 11), [1]), "candidate 2, table 2: .* found 11"),
            ((nan, user, items, [1]), "user, dense column 0: .* found nan"),
            ((dense, user, items, [3]), r"different tables from 0 to 2, found \[3\]"),
            ((dense, np.zeros(2, np.int32), items, [1, 1]), r"different tables .* \[1, 1\]"),
            ((dense[:2], user, items, [1]), r"dense: expected float32 \[3\], found float32 \[2\]"),
            ((dense, user, items[0], [1]), r"item_ids: expected int32 \[samples, 2\], found int32"),
        ):
            with pytest.raises(ValueError, match=message):
                scorer.score_candidates(*arguments)


@pytest.mark.parametrize(
    ("dense", "ids", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), "i4"), r"dense: expected float32 \[samples, 3\]"),
        (np.zeros((2, 3), "f4"), np.zeros((2, 3), "i8"), r"ids: .* found int64 \[2, 3\]"),
        (np.zeros((2, 3), ">f4"), np.zeros((2, 3), "i4"), "dense: expected float32"),
        (np.zeros((2, 3), "f4"), np.zeros((3, 3), "i4"), r"ids: expected int32 \[2, 3\]"),
        (np.zeros((2, 4), "f4"), np.zeros((2, 3), "i4"), r"found float32 \[2, 4\]"),
        (np.zeros(3, "f4"), np.zeros((1, 3), "i4"), r"found float32 \[3\]"),
        ([["a"] * 3], np.zeros((1, 3), "i4"), "dense: expected float32"),
    ],
)
def test_wrong_types_and_shapes(tmp_path: Path, dense: Any, ids: Any, message: str) -> None:
    write_artifact(tmp_path / "a")
    with opened(tmp_path / "a") as scorer, pytest.raises(ValueError, match=message):
        scorer.score(dense, ids)


def test_a_closed_scorer_refuses(tmp_path: Path) -> None:
    reference = write_artifact(tmp_path / "a")
    scorer = opened(tmp_path / "a")
    scorer.close()
    scorer.close()
    with pytest.raises(ValueError, match="closed"):
        scorer.score(*samples(reference, 1))


@pytest.mark.parametrize("name", ["tables", "row_order", "dense", "dictionary", "known_ids"])
def test_a_flipped_byte_is_named(tmp_path: Path, name: str) -> None:
    known = ((1, 5), (0,), ())
    write_artifact(tmp_path / "a", row_order=True, dictionary=True, known=known)
    path = tmp_path / "a" / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: damaged between offsets 0 and"):
        Scorer.open(tmp_path / "a")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a")
    write_artifact(tmp_path / "b", bottom=(6, 4))
    (tmp_path / "b" / "dense.safetensors").rename(tmp_path / "a" / "dense.safetensors")
    with pytest.raises(
        ValueError, match=r"bottom_kernel_0: expected float32 \[3, 5\], found float32 \[3, 6\]"
    ):
        Scorer.open(tmp_path / "a", verify=False)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", row_order=True)
    for settings, message in (
        ({"hot_share": 1.5}, "hot_share: expected a share from 0 to 1, found 1.5"),
        ({"threads": 0}, "threads: expected 1 or more, found 0"),
        ({"level": "sse9"}, "level: expected one of portable.*found 'sse9'"),
    ):
        with pytest.raises(ValueError, match=message):
            Scorer.open(tmp_path / "a", **settings)


def test_rows_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifact(tmp_path / "a", **SHAPE)
    (tmp_path / "meminfo").write_text("MemAvailable: 48 kB\n")
    monkeypatch.setattr("dlrm.distributed.host_memory._STATISTICS", tmp_path / "meminfo")
    with pytest.raises(ValueError, match="memory that this process may take.*--hot_share"):
        opened(tmp_path / "a")


def test_a_scorer_that_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_artifact(tmp_path / "a")
    scorer_library.load.cache_clear()
    monkeypatch.setattr(scorer_library, "LIBRARY", tmp_path / "none.so")
    with pytest.raises(OSError, match="make serving_core"):
        Scorer.open(tmp_path / "a")
