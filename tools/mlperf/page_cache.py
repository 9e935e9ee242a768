"""Clears this host's page cache, so that a run finds its data on the disk and not in memory.

    python3 -m tools.mlperf.page_cache [--log FILE]

MLPerf asks for it before every run. Call it on each host, with --log on one of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    from dlrm.reporting.mlperf_events import CACHE_CLEAR, MlperfEvents

_DROP = Path("/proc/sys/vm/drop_caches")
_SUDO = ("sudo", "-n", "/sbin/sysctl", "vm.drop_caches=3")
_TIME_LIMIT = 600  # seconds; much may have to be written to the disk


def clear(log: str | None = None) -> None:
    """Writes what is not yet on the disk, and drops the page cache; as root, or by sudo.

    Args:
        log: The MLPerf log to which the event is appended; None for none.

    Raises:
        ValueError: This process must not; the message names the remedy.
    """
    os.sync()
    try:
        _DROP.write_text("3\n")
    except OSError as error:
        try:
            subprocess.run(_SUDO, check=True, capture_output=True, timeout=_TIME_LIMIT)
        except (OSError, subprocess.SubprocessError):
            raise ValueError(
                "the page cache is not cleared: expected root, or sudo without a password, found "
                f"{error.strerror}; outside of containers, as root: sync; sysctl vm.drop_caches=3"
            ) from error
    if log is not None:
        MlperfEvents(log).event(CACHE_CLEAR, True)


def main(arguments: Sequence[str]) -> int:
    """Clears the cache; returns the exit code."""
    parser = cli.Parser(
        prog="python3 -m tools.mlperf.page_cache", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--log", help="MLPerf log to which the event cache_clear is appended")
    clear(parser.parse_args(arguments).log)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
