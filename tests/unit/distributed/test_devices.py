"""What a process computes on, on a machine whose GPUs and memory the test invents."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tensorflow as tf

from dlrm.distributed import devices, host_memory

CORES = 12


class Gpu(NamedTuple):
    """As TensorFlow names a GPU."""

    name: str


GPUS = [Gpu("/physical_device:GPU:0"), Gpu("/physical_device:GPU:1")]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `claim` sets; the machine has `CORES` cores and no GPU unless a test adds some."""
    found: dict[str, Any] = {}

    def record(name: str) -> Any:
        return lambda *values: found.update({name: values})

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(tf.config, "set_visible_devices", record("visible"))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", record("growth"))
    for name in ("intra", "inter"):
        setter = f"set_{name}_op_parallelism_threads"
        monkeypatch.setattr(tf.config.threading, setter, record(name))
    return found


@pytest.mark.parametrize(("local_rank", "index"), [(0, 0), (1, 1), (2, 0)])
def test_each_local_rank_takes_its_gpu(
    local_rank: int, index: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: GPUS)
    devices.claim(local_rank, core_per_operation=True)
    assert settings == {"visible": (GPUS[index], "GPU"), "growth": (GPUS[index], True)}


def test_without_gpus_operations_share_the_cores(settings: dict[str, Any]) -> None:
    devices.claim(0, core_per_operation=True)
    assert settings == {"intra": (CORES // devices.MAX_LANES,), "inter": (devices.MAX_LANES,)}
    devices.claim(0, core_per_operation=False)
    assert settings["intra"] == (CORES,)


def test_a_single_core_still_computes_beside_an_exchange(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    devices.claim(0, core_per_operation=True)
    assert settings == {"intra": (1,), "inter": (2,)}


@pytest.mark.parametrize(("cores", "lanes"), [(1, 1), (3, 3), (12, devices.MAX_LANES)])
def test_lanes_are_cores_up_to_a_limit(
    cores: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert devices.lanes() == lanes
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: GPUS)
    assert devices.lanes() == 1


@pytest.fixture
def control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group without a limit."""
    monkeypatch.setattr(host_memory, "_CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    return tmp_path


def test_ranks_of_a_machine_share_its_memory(control_group: Path) -> None:
    """A control group's limit counts too."""
    host = host_memory.free_host_memory()
    assert host is not None
    assert host > 1000
    (control_group / "memory.max").write_text("9000\n")
    assert host_memory.free_host_memory() == 8000
    assert devices.free_memory(local_size=4) == 2000


@pytest.mark.parametrize(
    ("membership", "file", "name"),
    [
        ("4:memory:/job/part\n0::/\n", "memory/job/part", "memory.limit_in_bytes"),
        ("4:cpu,memory:/job/part\n", "memory/job", "memory.limit_in_bytes"),
        ("4:memory:/hidden\n", "memory", "memory.limit_in_bytes"),
        ("0::/job/part\n", "job/part", "memory.max"),
        ("0::/job/part\n", "", "memory.max"),
    ],
)
def test_the_limit_of_a_control_group_or_of_one_around_it(
    membership: str, file: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(host_memory, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "_STATISTICS", tmp_path / "meminfo")
    assert host_memory.memory_limit() is None
    (tmp_path / "meminfo").write_text("MemFree: 10 kB\nMemAvailable: 100 kB\n")
    assert host_memory.memory_limit() == 102400
    (tmp_path / "cgroup").write_text(membership)
    assert host_memory.memory_limit() == 102400
    folder = tmp_path / file
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("max\n")
    assert host_memory.memory_limit() == 102400
    (folder / name).write_text("12345\n")
    assert host_memory.memory_limit() == 12345


@pytest.mark.parametrize(
    ("visible", "asked", "answer", "free"),
    [
        (None, "1", ["2048"], 2 << 30),
        ("5,7", "7", ["1024"], 1 << 30),  # TensorFlow's GPU 1 is the driver's 7
        (None, "1", ["[N/A]"], None),
        (None, "1", [], None),
    ],
)
def test_free_memory_of_a_gpu_is_the_drivers_answer(
    visible: str | None,
    asked: str,
    answer: list[str],
    free: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [GPUS[1]])
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    questions = []

    def query(*question: str) -> list[str]:
        questions.append(question)
        return answer

    monkeypatch.setattr(devices, "query_gpus", query)
    assert devices.free_memory(local_size=1) == free
    assert questions == [("memory.free", asked)]
