"""Package versions and hardware of this machine, for the event log of a run.

Asks package metadata and the operating system; imports none of the packages it names.
"""

from __future__ import annotations

import os
import platform

from dlrm.distributed.gpu_query import query_gpus

_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "horovod", "merlin-sok", "numpy")


def versions() -> dict[str, str]:
    """Finds the versions of Python and of the installed packages that matter to a run."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, object]:
    """Describes this machine: name, system, processor, cores, memory in bytes and GPUs."""
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": query_gpus("name"),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
