"""Any number of ranks ends with the weights of a float64 NumPy training of the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from processes import run
from reference import ReferenceDLRM
from workers import parity

WORKER = Path(__file__).parent / "workers" / "parity.py"
RANKS = (1, 2, 3, 4)
# float32 training against float64: 20 steps of learning rate 0.5 move weights by about 0.1.
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(ranks, settings index) -> dense weights at begin and end, tables at begin and end."""
    found = {}
    for size in RANKS:
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        launch = [] if size == 1 else ["horovodrun", "-np", str(size)]
        result = run([*launch, sys.executable, str(WORKER), str(folder)], time_limit=300)
        assert result.code == 0, result.output
        for index in range(len(parity.SETTINGS)):
            files = [np.load(folder / f"{index}-{rank}.npz") for rank in range(size)]
            dense = [files[0][f"arr_{i}"] for i in range(len(files[0].files) - 2)]
            for other in files[1:]:
                for i, value in enumerate(dense):
                    np.testing.assert_array_equal(value, other[f"arr_{i}"])
            half = len(dense) // 2
            tables = [
                interleaved([file[name] for file in files]) for name in ("begin_rows", "rows")
            ]
            found[size, index] = dense[:half], dense[half:], *tables
    return found


def interleaved(shares):
    """The fused table from the ranks' shares: key k is row k // size of rank k % size."""
    total = sum(parity.VOCAB_SIZES)
    table = np.empty((total, shares[0].shape[1]), np.float32)
    for rank, share in enumerate(shares):
        owned = len(table[rank :: len(shares)])
        assert owned == len(share), "a rank holds exactly its share"
        table[rank :: len(shares)] = share
    return table


def by_table(fused):
    return np.split(fused, np.cumsum(parity.VOCAB_SIZES)[:-1])


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("index", range(len(parity.SETTINGS)))
def test_weights_equal_numpy_training(weights, size, index):
    settings = parity.SETTINGS[index]
    begin, end, begin_rows, rows = weights[size, index]
    samples = parity.Samples(bad=settings["bad_ids"] == "zero")
    tables = by_table(begin_rows)
    ids = samples.ids
    if settings["bad_ids"] == "zero":
        # An id outside its table is a row of zeros that is never trained: give it one, and reset.
        tables = [np.vstack([table, np.zeros((1, table.shape[1]))]) for table in tables]
        ids = np.minimum(ids, parity.VOCAB_SIZES)
    layers = list(zip(begin[::2], begin[1::2]))
    reference = ReferenceDLRM(tables, layers[:2], layers[2:])
    for step in range(parity.STEPS):
        part = slice(step * parity.GLOBAL_BATCH, (step + 1) * parity.GLOBAL_BATCH)
        reference.step(samples.dense[part], ids[part], samples.labels[part], 0.5)
        if settings["bad_ids"] == "zero":
            for table in reference.tables:
                table[-1] = 0

    expected = [value for layer in reference.bottom + reference.top for value in layer]
    errors = [np.abs(value - want).max() for value, want in zip(end, expected)]
    for table, want in zip(by_table(rows), reference.tables):
        errors.append(np.abs(table - want[: len(table)]).max())
    moved = max(np.abs(a - b).max() for a, b in zip(begin, end))
    print(f"ranks {size}, {settings}: max difference {max(errors):.2e}, weights moved {moved:.2f}")
    assert moved > 0.05
    assert max(errors) < TOLERANCE


def test_first_weights_do_not_depend_on_the_number_of_ranks(weights):
    for (size, index), (begin, _, begin_rows, _) in weights.items():
        for value, other in zip(begin, weights[1, 0][0]):
            np.testing.assert_array_equal(value, other, err_msg=f"ranks {size}, setting {index}")
        np.testing.assert_array_equal(begin_rows, weights[1, 0][2])
