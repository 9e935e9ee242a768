"""Stops the training whose ranks run on this host, and waits until they have ended.

    python3 -m launch.stop

For schedulers that take a host away without asking its ranks: Kubernetes, for one, signals the
first process of a container alone, which on a host reached by ssh is sshd. The ranks write a
checkpoint, on all hosts, and end with code 75. It waits for as long as that takes.
"""

from __future__ import annotations

import contextlib
import sys

from dlrm import cli

with cli.project_environment():
    import psutil

    from launch.processes import log, ranks_below

FIRST_PROCESS = 1


def main() -> int:
    """Stops every rank of this host that this user may signal; returns the exit code, 0."""
    ranks = list(ranks_below(FIRST_PROCESS))
    log(f"stopping the ranks on this host: {', '.join(str(r.pid) for r in ranks) or 'none runs'}")
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.terminate()
    psutil.wait_procs(ranks)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
