"""Connections between the ranks of one host: bytes between threads, each of which is a rank."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import numpy as np
import pytest

from dlrm.distributed.host_links import ALIGNMENT, BUFFER, HostLinks, NamedSocket

TIMEOUT = 20.0


def as_ranks(size: int, act: Callable[[int], Any]) -> list[Any]:
    """Calls `act` with each rank, all at the same time."""
    with ThreadPoolExecutor(size) as pool:
        return [done.result(TIMEOUT * 2) for done in [pool.submit(act, r) for r in range(size)]]


def linked(size: int, timeout: float = TIMEOUT) -> list[HostLinks]:
    """The ends of all ranks."""
    listeners = [NamedSocket() for _ in range(size)]
    names = [listener.name for listener in listeners]
    return as_ranks(size, lambda rank: HostLinks(rank, listeners[rank], names, timeout))


def sent_by(rank: int, sizes: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes of which no two ranks send the same."""
    return np.random.default_rng(rank).integers(0, 256, sum(sizes), np.uint8)


@pytest.mark.parametrize(
    "counts",
    [
        [[0, 0], [0, 0]],
        [[3, 0], [7, 1]],
        [[1, 2, 3], [0, 5, 0], [9, 0, 4]],
        # More than a connection holds, both ways: a rank must read while it sends.
        [[5, 2 * BUFFER + 1], [3 * BUFFER, 0]],
        [[0, 2 * BUFFER, 1], [2 * BUFFER, 0, 3 * BUFFER], [1, 4 * BUFFER, 8]],
    ],
)
def test_bytes_arrive_in_order_of_their_source(counts: list[list[int]]) -> None:
    size = len(counts)
    links = linked(size)
    data = [sent_by(rank, sizes) for rank, sizes in enumerate(counts)]
    for _ in range(3):  # what is left in a connection must not disturb the next exchange
        found = as_ranks(size, lambda rank: links[rank].alltoall(data[rank], counts[rank]))
        for rank, (received, lengths) in enumerate(found):
            starts = [sum(counts[source][:rank]) for source in range(size)]
            expected = [data[s][starts[s] : starts[s] + counts[s][rank]] for s in range(size)]
            assert lengths == [len(part) for part in expected]
            assert received.tobytes() == b"".join(part.tobytes() for part in expected)
            assert not len(received) or received.ctypes.data % ALIGNMENT == 0


def test_a_rank_may_be_an_exchange_ahead() -> None:
    """It sends the next message while the other has not read the last one."""
    first, second = linked(2)
    ones, twos = np.full(10, 1, np.uint8), np.full(20, 2, np.uint8)

    def late() -> list[int]:
        found = []
        for _ in range(2):
            time.sleep(0.2)
            found.append(int(second.alltoall(ones, [10, 0])[0].sum()))
        return found

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(late)
        assert int(first.alltoall(ones, [0, 10])[0].sum()) == 10
        assert int(first.alltoall(twos, [0, 20])[0].sum()) == 10
        assert other.result(TIMEOUT) == [10, 40]


def test_a_silent_rank_is_named() -> None:
    first, _second = linked(2, timeout=0.2)
    with pytest.raises(TimeoutError, match=r"rank 1 sent nothing for 0 s"):
        first.alltoall(np.zeros(4, np.uint8), [0, 4])


KILLED = """
import os, sys, numpy as np
from dlrm.distributed.host_links import HostLinks, NamedSocket
listener = NamedSocket()
print(listener.name, flush=True)
links = HostLinks(1, listener, [sys.stdin.readline().strip(), listener.name], 20.0)
links.alltoall(np.zeros(0, np.uint8), [0, 0])
os.kill(os.getpid(), 9)
"""


def test_a_killed_rank_ends_the_exchange_of_the_others() -> None:
    listener = NamedSocket()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", KILLED], stdin=pipe, stdout=pipe) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(f"{listener.name}\n".encode())
        other.stdin.flush()
        names = [listener.name, other.stdout.readline().decode().strip()]
        links = HostLinks(0, listener, names, TIMEOUT)
        links.alltoall(np.zeros(0, np.uint8), [0, 0])
        begin = time.monotonic()
        # Whether this rank was sending or waiting when it happened.
        with pytest.raises(ConnectionError):
            links.alltoall(np.zeros(3 * BUFFER, np.uint8), [0, 3 * BUFFER])
        assert time.monotonic() - begin < TIMEOUT / 2
        assert other.wait(TIMEOUT) == -9
    # The kernel has forgotten the name, so nothing is left of the rank.
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(f"\0{names[1]}")
