"""What this process computes on: its GPU, or its share of the cores.

Knows nothing of models or of other ranks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import tensorflow as tf

_CONTROL_GROUP = Path("/sys/fs/cgroup")
MOST_LANES = 8  # the graph grows with the lanes; beyond, each lane gets several cores


def claim(local_rank: int, *, whole_operations: bool) -> None:
    """Takes the local rank's GPU or, without GPUs, sets how cores are used. Before any tensor.

    Args:
        local_rank: this process among those of its machine.
        whole_operations: run each operation on one core and several at a time (`lanes`), rather
            than each on all cores.
    """
    # A process whose TensorFlow already runs keeps the device and threads that it has.
    with contextlib.suppress(RuntimeError):
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            gpu = gpus[local_rank % len(gpus)]
            tf.config.set_visible_devices(gpu, "GPU")
            tf.config.experimental.set_memory_growth(gpu, True)
            return
        cores = len(os.sched_getaffinity(0))
        at_a_time = min(cores, MOST_LANES)
        tf.config.threading.set_intra_op_parallelism_threads(
            cores // at_a_time if whole_operations else cores
        )
        # At least two, so that an exchange between ranks does not stop the computation.
        tf.config.threading.set_inter_op_parallelism_threads(max(2, at_a_time))


def has_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return bool(tf.config.list_logical_devices("GPU"))


def lanes() -> int:
    """How many independent pieces of work this process should be given at a time."""
    if has_gpu():
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_LANES)


def free_memory(local_size: int) -> int | None:
    """Bytes that this process may still take: of its GPU or, without GPUs, its share of the host's.

    Args:
        local_size: processes on this machine, which share its memory.

    Returns:
        None if nobody tells.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        return _free_gpu_memory(int(gpus[0].name.rpartition(":")[2]))
    free = free_host_memory()
    return None if free is None else free // local_size


def free_host_memory() -> int | None:
    """Bytes free on this machine, and in this process's control group if it has a limit."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
        with contextlib.suppress(OSError, ValueError):  # no control group, or no limit: "max"
            limit = int((_CONTROL_GROUP / "memory.max").read_text())
            free = min(free, limit - int((_CONTROL_GROUP / "memory.current").read_text()))
        return free
    return None


def _free_gpu_memory(index: int) -> int | None:
    """Of the visible GPU of that index; the driver's own tool names GPUs as the variable does."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = visible.split(",")[index] if visible else str(index)
    query = [
        "nvidia-smi",
        f"--id={name}",
        "--query-gpu=memory.free",
        "--format=csv,noheader,nounits",
    ]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return int(found.stdout) << 20
    return None
