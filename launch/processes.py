"""The processes of a job: which are its ranks, and how to stop them or to end them all.

Everything that a job leaves behind becomes a child of this process, wherever its parents have gone,
so "the descendants of this process" is "the job". Independent of attempts and restarts. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator

import psutil

LEFTOVER_SECONDS = 10.0  # after horovodrun's death, its helpers end what they started by then
RANK_VARIABLES = {"HOROVOD_RANK", "OMPI_COMM_WORLD_RANK"}  # one of them in a rank's environment
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LIBRARY = ctypes.CDLL(None)  # loaded before any fork


def log(text: str) -> None:
    """Writes a line of the launcher's own to standard error."""
    print(f"launch: {text}", file=sys.stderr, flush=True)


def adopt_orphans() -> None:
    """Makes this process the parent of all descendants whose own parents have ended."""
    LIBRARY.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Has this process receive a signal when its parent dies. Runs in a forked child."""
    LIBRARY.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def stop_one_rank(pid: int) -> None:
    """Sends SIGTERM to one rank of this machine, which informs the other ranks.

    Args:
        pid: The job's first process; it gets the signal itself if there is no rank below it.
    """
    for rank in ranks_below(pid):
        try:
            rank.terminate()
            return
        except psutil.NoSuchProcess:
            continue
    log("no rank runs on this machine; ending the job")
    os.kill(pid, signal.SIGTERM)


def ranks_below(pid: int) -> Iterator[psutil.Process]:
    """Yields the ranks among a process's descendants, but neither shells above nor children."""
    environments: dict[int, dict[str, str]] = {}
    try:
        descendants = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for process in descendants:
        try:
            environments[process.pid] = process.environ()
            parent = process.ppid()
        except psutil.Error:
            continue
        inherited = RANK_VARIABLES & environments.get(parent, {}).keys()
        if RANK_VARIABLES & environments[process.pid].keys() and not inherited:
            yield process


def kill_job() -> None:
    """Kills every descendant of this process."""
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def end_leftovers() -> None:
    """Waits for what a job has left behind, then kills it: two jobs must never run side by side."""
    end = time.monotonic() + LEFTOVER_SECONDS
    while left := psutil.Process().children(recursive=True):
        if time.monotonic() > end + LEFTOVER_SECONDS:
            log(f"cannot end the processes {', '.join(str(process.pid) for process in left)}")
            return
        if time.monotonic() > end:
            kill_job()
        psutil.wait_procs(left, timeout=0.1)
