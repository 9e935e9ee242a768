"""How much memory this machine has left for a process, and what a process does with what it frees.

It does not import TensorFlow.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_CONTROL_GROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_STATISTICS = Path("/proc/meminfo")

# Of malloc.h in the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def free_host_memory() -> int | None:
    """Returns the bytes free on this machine, and in this process's control group if it is limited.

    Returns:
        Bytes; None if the free memory cannot be determined.
    """
    with contextlib.suppress(OSError, StopIteration):
        free = _available()
        with contextlib.suppress(OSError, ValueError):  # no control group, or no limit: "max"
            limit = int((_CONTROL_GROUP / "memory.max").read_text())
            free = min(free, limit - int((_CONTROL_GROUP / "memory.current").read_text()))
        return free
    return None


def _available() -> int:
    """The bytes that the machine can give without swapping."""
    lines = _STATISTICS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvail"))


def memory_limit() -> int | None:
    """Returns the bytes that a process may take here: free on the machine, and within its limits.

    In a control group, pages of files that can be read again count towards what is used, but give
    way: what must fit below the limit is memory that cannot be dropped.

    Returns:
        Bytes; None if neither can be determined.
    """
    limits = []
    with contextlib.suppress(OSError, StopIteration):
        limits.append(_available())
    with contextlib.suppress(OSError, ValueError):
        for line in _MEMBERSHIP.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                root, name = _CONTROL_GROUP, "memory.max"
            elif "memory" in controllers.split(","):
                root, name = _CONTROL_GROUP / "memory", "memory.limit_in_bytes"
            else:
                continue
            # A group's limit holds for the groups within it.
            path = Path(group.lstrip("/"))
            for folder in (path, *path.parents):
                with contextlib.suppress(OSError, ValueError):  # hidden in a container; "max"
                    limits.append(int((root / folder / name).read_text()))
    return min(limits, default=None)


def keep_freed_memory() -> None:
    """Lets this process use freed memory again, rather than give it back to the system.

    Every step allocates and frees the same tensors. By default the C library takes those of 32 MiB
    or more from the system each time, which fills them with zeros, page after page: 6 % of a step
    of MLPerf's MLPs with 8192 samples. Call it after what is allocated only once. Without the GNU C
    library it does nothing.
    """
    with contextlib.suppress(AttributeError, OSError):
        change = ctypes.CDLL(None).mallopt
        change(_MMAP_MAX, 0)
        change(_TRIM_THRESHOLD, _NEVER)
