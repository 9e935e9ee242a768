"""SOK's backends without a GPU: the real package, with kernels for CPUs instead of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from dlrm.embedding import choose, dynamic_capacity
from tests.support.processes import ROOT, run

WORKER = "tests.multi_rank.workers.sok"
CHECKS = (
    "sok against NumPy",
    "sok_dynamic against NumPy",
    "alltoall and sok",
    "sok and sok_dynamic",
    "checkpoint, sok to alltoall",
    "checkpoint, alltoall to sok",
    "checkpoint, sok_dynamic to sok",
    "checkpoint, sok_dynamic to dynamic",
    "checkpoint, dynamic to sok_dynamic",
    "an optimizer's state",
    "rows of occurring ids",
    "wider tables",
)
pytestmark = pytest.mark.gpu
needs_sok = pytest.mark.skipif(
    importlib.util.find_spec("sparse_operation_kit") is None,
    reason="SparseOperationKit is not installed here; `make test-runs PROFILE=sok` has it",
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of emulated kernels."""
    library = tmp_path_factory.mktemp("sok") / "kernels.so"
    flags = tf.sysconfig.get_compile_flags(), tf.sysconfig.get_link_flags()
    source = ROOT / "tests" / "emulation" / "sok" / "kernels.cc"
    command = ["g++", "-O1", "-fPIC", "-shared", *flags[0], source, "-o", library, *flags[1]]
    subprocess.run(command, check=True)
    return library


@needs_sok
@pytest.mark.parametrize("ranks", [1, 2])
def test_training_and_checkpoints_with_emulated_kernels(
    ranks: int, kernels: Path, tmp_path: Path
) -> None:
    launch = [] if ranks == 1 else ["horovodrun", "--gloo", "-np", str(ranks)]
    command: list[str | Path] = [*launch, sys.executable, "-m", WORKER, kernels, tmp_path, *CHECKS]
    ended = run(command, time_limit=300)
    assert ended.code == 0, ended.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == ranks
    for lines in found:
        assert [line["check"] for line in lines] == list(CHECKS)
        for line in lines:
            assert line["verdict"] == "pass", line


def test_auto_is_alltoall_without_a_gpu() -> None:
    assert choose("auto") == ("alltoall", "no GPU is visible")
    for named in ("sok", "sok_dynamic"):
        with pytest.raises(ValueError, match=r"expected a GPU.*--embedding=alltoall") as caught:
            choose(named)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [0, 1, 511, 512, 513, 5_000_000, 1 << 30])
def test_room_of_a_dynamic_table(rows: int) -> None:
    room = dynamic_capacity(rows)
    assert room >= max(2 * rows, 1024)
    assert room & (room - 1) == 0, "a power of two"
    assert room < max(4 * rows, 1025)
