"""Starts `python3 -m serving serve` as a user would, and ends everything of it afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.support.processes import MARK, ROOT, kill, remaining, wait_until_gone

START_SECONDS = STOP_SECONDS = 40.0


class ServeCommand:
    """A server with free ports that answers; leaving the block kills what is left of it.

    Attributes:
        http, grpc: The addresses.
        metrics: The URL of the metrics.
    """

    def __init__(self, folder: Path, *flags: str | Path) -> None:
        self.output = folder / f"serve-{uuid.uuid4().hex}.txt"
        self._mark = uuid.uuid4().hex
        ports = [f"--{name}_port=0" for name in ("http", "grpc", "metrics")]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving", "serve", *map(str, flags), *ports],
                cwd=ROOT,
                env={**os.environ, MARK: self._mark, "TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.http, self.grpc, self.metrics = self._addresses()
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> ServeCommand:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def _addresses(self) -> tuple[str, str, str]:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(r"http=(\S+) grpc=(\S+) metrics=(\S+)", self.text()):
                return found[1], found[2], found[3]
            time.sleep(0.05)
        raise AssertionError(f"no server: {self.text()}")

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(encoding="utf-8")

    def pid_of(self, program: str, argument: str = "") -> int:
        """The only process of it that runs this program, with a text among its arguments."""
        (pid,) = (
            pid
            for pid, words in remaining(self._mark, self.process.pid).items()
            if Path(words.split()[0]).name == program and argument in words
        )
        return pid

    def stop(self) -> int:
        """Sends SIGTERM and waits for the end of all its processes; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Waits for the end of all its processes; returns the exit code."""
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()  # its clients would wait, too
            raise
        left = wait_until_gone(self._mark, self.process.pid)
        assert not left, f"left behind: {left}"
        return code

    def _kill(self) -> None:
        kill(remaining(self._mark, self.process.pid))
        self.process.wait()
