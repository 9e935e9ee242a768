"""Training resumes as if nothing had happened, on the same or another number of ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.multi_rank.workers import parity
from tests.support.processes import run

# .ci/run says what is left out of the other profile.
pytestmark = pytest.mark.one_profile

WORKER = "tests.multi_rank.workers.resume"
# Launches in order: how many ranks, and whose checkpoints, written before, they take.
LAUNCHES = ((4, ()), (1, ()), (2, (4, 1)), (3, (2,)), (2, (3, 2)), (1, (2, 1)))
PAIRS = [(source, size) for size, sources in LAUNCHES for source in sources]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the worker left: FROM-to-SIZE-RANK.npz and uninterrupted-SIZE-RANK.npz."""
    folder = tmp_path_factory.mktemp("resume")
    for size, sources in LAUNCHES:
        launch = [] if size == 1 else ["horovodrun", "--gloo", "-np", str(size)]
        command = [*launch, sys.executable, "-m", WORKER, str(folder), *map(str, sources)]
        result = run(command, time_limit=300)
        assert result.code == 0, result.output
    return folder


def weights(folder: Path, name: str, size: int) -> dict[str, np.ndarray]:
    """Dense weights, logits of a global batch and the fused table, put together from all ranks."""
    files = [np.load(folder / f"{name}-{rank}.npz") for rank in range(size)]
    found = {key: files[0][key] for key in files[0].files}
    table = np.empty((sum(parity.VOCAB_SIZES), files[0]["rows"].shape[1]), np.float32)
    for rank, file in enumerate(files):
        table[rank::size] = file["rows"]
        for key in set(file.files) - {"rows", "logits"}:
            np.testing.assert_array_equal(file[key], found[key], err_msg=key)
    logits = np.concatenate([file["logits"] for file in files])
    return {**found, "rows": table, "logits": logits}


@pytest.mark.parametrize(("source", "size"), PAIRS)
def test_goes_on_as_if_uninterrupted(folder: Path, source: int, size: int) -> None:
    found = weights(folder, f"{source}-to-{size}", size)
    expected = weights(folder, f"uninterrupted-{source}", source)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if source == size:
            np.testing.assert_array_equal(found[key], value, err_msg=key)
        else:
            np.testing.assert_allclose(found[key], value, atol=2e-6, err_msg=key)


def test_a_lost_step_would_be_seen(folder: Path) -> None:
    """The tolerance above lies far below what a single step moves."""
    begin = weights(folder, "at-checkpoint-1", 1)
    end = weights(folder, "uninterrupted-1", 1)
    for key in begin.keys() - {"logits"}:
        assert np.abs(end[key] - begin[key]).max() > 1e-3, key
