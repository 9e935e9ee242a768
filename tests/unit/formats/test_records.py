"""Records: their layout, their description, and which record is named if one is bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm.formats.records import RecordChecker, RecordLayout, read_record_description

FILE = Path("train_data.bin")
DESCRIPTION = {"num_dense": 2, "vocab_sizes": [5, 7], "dense_log_offset": 3.0, "train_samples": 4}


def columns(records: int = 100) -> list[Any]:
    """Labels, dense values and ids of good records."""
    generator = np.random.default_rng(records)
    labels = generator.integers(0, 2, records).astype("<i4")
    dense = generator.integers(-2, 50, [records, 2]).astype("<i4")
    return [labels, dense, generator.integers(0, (5, 7), [records, 2]).astype("<i4")]


def test_a_record_is_label_dense_and_ids_of_four_bytes() -> None:
    assert RecordLayout(num_dense=2, num_categorical=3).record_bytes == 4 * (1 + 2 + 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_dense": 0}, "num_dense"),
        ({"num_categorical": 0}, "num_categorical: expected a positive integer, found 0"),
        ({"vocab_sizes": (5,)}, "expected 2 vocabulary sizes.*found 1"),
        ({"vocab_sizes": (5, 0)}, "vocab_sizes"),
        ({"dense_log_offset": float("nan")}, "dense_log_offset"),
    ],
)
def test_a_layout_that_no_file_can_have_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecordLayout(**{"num_dense": 2, "num_categorical": 2, **arguments})


def test_vocabularies_are_given_or_end_at_the_largest_id() -> None:
    """Ids may arrive in any number of blocks, also of fewer records than are folded at a time."""
    checker = RecordChecker(FILE, RecordLayout(2, 2))
    for records in (1, 100):
        labels, dense, ids = columns(records)
        ids[-1] = 3 * records, 2
        checker.check(0, labels, dense, ids)
    assert checker.vocab_sizes == (301, 7)
    assert RecordChecker(FILE, RecordLayout(2, 2, (5, 7))).vocab_sizes == (5, 7)


@pytest.mark.parametrize(
    ("column", "record", "value", "message"),
    [
        (0, 9, 2, r"record 1009, label: expected 0 or 1, found 2"),
        (1, (40, 1), -3, r"record 1040, dense column 1: ln\(-3 \+ 3\) is not finite"),
        (2, (99, 0), 5, r"record 1099, categorical column 0: id 5 is outside \[0, 5\)"),
        (2, (99, 1), -1, r"record 1099, categorical column 1: id -1 is outside \[0, 7\)"),
    ],
)
def test_the_first_bad_record_is_named(column: int, record: Any, value: int, message: str) -> None:
    block = columns()
    checker = RecordChecker(FILE, RecordLayout(2, 2, (5, 7)))
    checker.check(0, *block)
    block[column][record] = value
    with pytest.raises(ValueError, match=rf"^train_data.bin: {message}"):
        checker.check(1000, *block)


def test_without_vocabularies_only_negative_ids_are_bad() -> None:
    labels, dense, ids = columns()
    ids[7, 1] = -2
    with pytest.raises(ValueError, match=r"record 7, categorical column 1: id -2 is negative"):
        RecordChecker(FILE, RecordLayout(2, 2)).check(0, labels, dense, ids)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_dense_values_in_float32_must_be_finite(value: float) -> None:
    labels, dense, ids = columns()
    floats = dense.astype("<f4")
    layout = RecordLayout(2, 2, dense_type="float32", dense_log=False)
    RecordChecker(FILE, layout).check(0, labels, floats.view("<i4"), ids)
    floats[3, 0] = value
    with pytest.raises(ValueError, match=r"record 3, dense column 0: expected a finite value"):
        RecordChecker(FILE, layout).check(0, labels, floats.view("<i4"), ids)


def described(folder: Path, samples: int = 4, **changes: Any) -> Path:
    """A record file of some samples, with a description; None takes a key out of it."""
    content = {key: value for key, value in {**DESCRIPTION, **changes}.items() if value is not None}
    (folder / "records.json").write_text(json.dumps(content))
    (folder / FILE).write_bytes(bytes(4 * 5 * samples))
    return folder / FILE


def test_a_description_is_optional(tmp_path: Path) -> None:
    assert read_record_description(tmp_path / FILE) is None
    assert read_record_description(described(tmp_path)) == DESCRIPTION


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_sizes": None}, "missing vocab_sizes"),
        ({"num_dense": -1}, "num_dense"),
        ({"samples": 3}, "train_data.bin: expected 4 records of 20 bytes = 80 bytes, found 60"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_with_a_remedy(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=rf"records.json: .*{message}.*run the preprocessing again"
    ):
        read_record_description(described(tmp_path, **changes))
