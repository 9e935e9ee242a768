"""The description of this system as MLPerf's submissions hold it, from what the system says.

What no program can know, such as the cooling, stays empty for the submitter.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from typing import Any, cast

from dlrm.distributed.gpu_query import query_gpus
from dlrm.formats.quantities import memory_text
from dlrm.reporting.machine import hardware, versions

# What MLPerf calls the values of submission_status.
STATUS = {
    "onprem": "Available on-premise",
    "cloud": "Available cloud",
    "preview": "Preview",
    "research": "Research, Development, or Internal (RDI)",
}
UNKNOWN = (
    *("host_processor_interconnect", "host_networking", "host_networking_topology"),
    *("host_memory_configuration", "accelerator_host_interconnect"),
    *("accelerator_on-chip_memories", "accelerator_memory_configuration"),
    *("accelerator_interconnect", "accelerator_interconnect_topology", "cooling", "hw_notes"),
)


def describe_system(logged: Mapping[str, object], nodes: int, notes: str) -> dict[str, Any]:
    """Describes this machine as one of `nodes` equal ones.

    Args:
        logged: The values of a log by key.
        nodes: Number of hosts.
        notes: What the submitter says of the software.
    """
    processor = _pairs(_lines("lscpu"), ":")
    release = _pairs(_lines("cat", "/etc/os-release"), "=")
    machine = hardware()
    packages = versions()
    gpus = cast("list[str]", machine["gpus"])
    cores = _product(processor, "Socket(s)", "Core(s) per socket")
    megahertz = processor.get("CPU max MHz")
    caches = [f"{name}: {size}" for name, size in processor.items() if name.endswith(" cache")]
    framework = "tensorflow" if "tensorflow" in packages else "tensorflow-cpu"
    return {
        "submitter": logged["submission_org"],
        "division": logged["submission_division"],
        "status": STATUS[cast(str, logged["submission_status"])],
        "system_name": logged["submission_platform"],
        "number_of_nodes": str(nodes),
        "host_processors_per_node": processor.get("Socket(s)", ""),
        "host_processor_model_name": machine["cpu"],
        "host_processor_core_count": cores,
        "host_processor_vcpu_count": str(os.cpu_count()),
        "host_processor_frequency": f"{megahertz} MHz" if megahertz else "",
        "host_processor_caches": ", ".join(caches),
        "host_memory_capacity": memory_text(cast(int, machine["memory_bytes"])),
        "host_storage_type": _disks("MODEL"),
        "host_storage_capacity": _disks("SIZE"),
        "accelerators_per_node": str(len(gpus)),
        "accelerator_model_name": gpus[0] if gpus else "",
        "accelerator_frequency": _first(query_gpus("clocks.max.sm"), " MHz"),
        "accelerator_memory_capacity": _first(query_gpus("memory.total"), " MiB"),
        "framework": f"TensorFlow {packages.get(framework, '')}, "
        f"Horovod {packages.get('horovod', '')}",
        "other_software_stack": packages,
        "operating_system": release.get("PRETTY_NAME", platform.platform()),
        "sw_notes": notes,
        **dict.fromkeys(UNKNOWN, ""),
    }


def _lines(*command: str) -> list[str]:
    """The lines that a program prints; none if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _pairs(lines: list[str], separator: str) -> dict[str, str]:
    """Lines of a name and a value each."""
    pairs = (line.partition(separator) for line in lines)
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def _product(values: Mapping[str, str], *names: str) -> str:
    """The product of numbers; empty if one is missing."""
    product = 1
    for name in names:
        if not values.get(name, "").isdigit():
            return ""
        product *= int(values[name])
    return str(product)


def _disks(column: str) -> str:
    """What lsblk says of each disk that holds anything."""
    answer = _lines("lsblk", "--nodeps", "--noheadings", "--exclude", "7", "--output", column)
    return ", ".join(value.strip() for value in answer if value.strip() not in ("", "0B"))


def _first(values: list[str], unit: str) -> str:
    return f"{values[0]}{unit}" if values else ""
