"""Stops the ranks on this host that run in this folder, and waits until they have ended.

    python3 -m launch.stop

For schedulers that take a host away without asking its ranks: Kubernetes, for one, signals the
first process of a container alone, which on a host reached by ssh is sshd. The ranks write a
checkpoint, on all hosts, and end with code 75. It waits for as long as that takes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from dlrm import cli

with cli.project_environment():
    import psutil

    from launch.processes import log, ranks_below

FIRST_PROCESS = 1


def main(argv: Sequence[str]) -> int:
    """Stops this user's ranks in the working directory; returns the exit code, 0.

    Raises:
        ValueError: There are arguments; then no rank is stopped.
    """
    cli.Parser(
        prog="python3 -m launch.stop", description=(__doc__ or "").splitlines()[0]
    ).parse_args(argv)
    folder = os.getcwd()
    ranks = [rank for rank in ranks_below(FIRST_PROCESS) if folder_of(rank) == folder]
    numbers = ", ".join(str(rank.pid) for rank in ranks)
    log(f"stopping the ranks in {folder}: {numbers or 'none runs'}")
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.terminate()
    psutil.wait_procs(ranks)
    return 0


def folder_of(rank: psutil.Process) -> str:
    """Returns a rank's working directory; empty if it has ended or is another user's."""
    try:
        return rank.cwd()
    except psutil.Error:
        return ""


if __name__ == "__main__":
    sys.exit(cli.exit_code(lambda: main(sys.argv[1:])))
