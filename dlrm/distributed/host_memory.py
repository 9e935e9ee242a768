"""How much memory this machine has left for a process; it does not import TensorFlow."""

from __future__ import annotations

import contextlib
from pathlib import Path

_CONTROL_GROUP = Path("/sys/fs/cgroup")


def free_host_memory() -> int | None:
    """Returns the bytes free on this machine, and in this process's control group if it is limited.

    Returns:
        Bytes; None if the free memory cannot be determined.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
        with contextlib.suppress(OSError, ValueError):  # no control group, or no limit: "max"
            limit = int((_CONTROL_GROUP / "memory.max").read_text())
            free = min(free, limit - int((_CONTROL_GROUP / "memory.current").read_text()))
        return free
    return None
