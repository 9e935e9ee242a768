"""A model three times as large as the memory that its process is given."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.artifacts import ArtifactReference, write_artifact
from tests.support.processes import ROOT, Ended, run

pytestmark = [pytest.mark.one_profile, pytest.mark.slow]

VOCAB_SIZES, WIDTH = (200_000, 90_000, 10_000), 256
REQUESTS = 3000
BYTES = sum(VOCAB_SIZES) * WIDTH * 4
LIMIT = BYTES // 3
HOT_SHARE = 0.1
WORKER = ROOT / "tests" / "commands" / "workers" / "limited_scorer.py"
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def control_group() -> Iterator[tuple[Path, int] | None]:
    """A new control group with the limit, and its version; None where none can be made."""
    name = f"limited-{uuid.uuid4().hex}"
    for root, setting, version in (
        (CONTROL_GROUPS / "memory", "memory.limit_in_bytes", 1),
        (CONTROL_GROUPS, "memory.max", 2),
    ):
        group = root / own_group(version).lstrip("/") / name
        try:
            group.mkdir()
            (group / setting).write_text(str(LIMIT))
        except OSError:  # not root, no such controller, or a mount that is only read
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group, version
        finally:
            group.rmdir()
        return
    yield None


def own_group(version: int) -> str:
    """This process's control group for memory."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if (controllers == "") if version == 2 else ("memory" in controllers.split(",")):
            return group
    return ""


def run_limited(words: Sequence[object]) -> Ended:
    """Runs the worker with a third of the memory that the rows take."""
    command = [str(word) for word in (sys.executable, WORKER, *words)]
    # Each thread of OpenBLAS, which is not used, reserves memory.
    env = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    with control_group() as group:
        if group:
            path, version = group
            print(f"limited by control group, version {version}")
            joined = f'echo 0 > {path / "cgroup.procs"} && exec "$@"'
            ended = run(["sh", "-c", joined, "sh", *command], time_limit=120, env=env)
            peak = path / ("memory.max_usage_in_bytes" if version == 1 else "memory.peak")
            if peak.exists():
                assert int(peak.read_text()) <= LIMIT
            return ended
        print("limited by RLIMIT_DATA: no control group can be made")
        # This counts what is reserved too, such as the stacks of threads.
        code = (
            "import resource, os, sys; "
            f"resource.setrlimit({resource.RLIMIT_STACK}, ({1 << 20}, {1 << 20})); "
            f"resource.setrlimit({resource.RLIMIT_DATA}, ({LIMIT}, {LIMIT})); "
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        return run([sys.executable, "-c", code, *command], time_limit=120, env=env)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArtifactReference]:
    """An artifact whose rows are on the disk, and not in the page cache."""
    folder = tmp_path_factory.mktemp("memory") / "artifact"
    reference = write_artifact(folder, VOCAB_SIZES, WIDTH, 3, (8, WIDTH), (8, 1), row_order=True)
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return folder, reference


def samples(folder: Path) -> tuple[Any, Any]:
    """Writes random samples for the worker; all rows are equally likely, most of them cold."""
    random = np.random.default_rng(5)
    dense = random.random((REQUESTS, 3), np.float32)
    ids = random.integers(0, VOCAB_SIZES, (REQUESTS, len(VOCAB_SIZES)), np.int32)
    np.save(folder / "dense.npy", dense)
    np.save(folder / "ids.npy", ids)
    return dense, ids


def test_rows_three_times_as_large_as_memory(
    model: tuple[Path, ArtifactReference], tmp_path: Path
) -> None:
    artifact, reference = model
    dense, ids = samples(tmp_path)
    ended = run_limited([artifact, tmp_path, HOT_SHARE])
    print(f"{ended.seconds:.1f} s")
    assert ended.code == 0, ended.output
    hot, cold = map(int, ended.output.split()[-2:])
    assert hot + cold == ids.size
    assert 0.05 < hot / ids.size < 0.15
    logits = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(logits, reference.logits(dense, ids), rtol=1e-5, atol=1e-5)


def test_all_rows_in_memory_are_refused_with_the_remedy(
    model: tuple[Path, ArtifactReference], tmp_path: Path
) -> None:
    artifact, _ = model
    samples(tmp_path)
    ended = run_limited([artifact, tmp_path, 1])
    assert ended.code == 1, ended.output
    (line,) = ended.output.splitlines()
    assert line.startswith(f"error: {artifact}: expected ")
    assert "smaller --hot_share" in line
