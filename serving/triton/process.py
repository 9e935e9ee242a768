"""`python3 -m serving serve` as a process of its own, for programs that ask it and then stop it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from serving.triton.client import PROTOCOLS

_SERVER_LINE = re.compile(r"http=(\S+) grpc=(\S+) metrics=(\S+)")


class RunningServer(NamedTuple):
    """A server that answers.

    Attributes:
        pid: The process that was started; Triton is a child of it.
        addresses: The address of each protocol.
        line: What it printed when it was ready.
    """

    pid: int
    addresses: Mapping[str, str]
    line: str


@contextlib.contextmanager
def running_server(artifact: Path, flags: Sequence[str] = ()) -> Iterator[RunningServer]:
    """Serves an artifact on free ports until the block ends; then shows what the server printed.

    Args:
        artifact: The artifact.
        flags: More flags of `serve`.

    Raises:
        OSError: The server does not start, or does not stop with code 0.
    """
    ports = [f"--{name}_port=0" for name in (*PROTOCOLS, "metrics")]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", "serve", artifact, *ports, *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if (found := _SERVER_LINE.search(line)) is None:
            raise OSError("expected the server to start, found that it did not; see above")
        yield RunningServer(process.pid, dict(zip(PROTOCOLS, found.groups())), line.rstrip())
    finally:
        process.send_signal(signal.SIGTERM)
        print(process.stdout.read(), end="", flush=True)
        code = process.wait()
    if code:
        raise OSError(f"expected the server to stop with code 0, found {code}")
