"""The process of Triton's server: its start, the wait until it answers, and its stop.

It serves whatever is in a model repository; what the models are is not its concern.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from launch.processes import end_with_parent
from serving.triton.installation import lay_out_backend, server_environment, server_program

LOG = "triton.log"
_POLL_SECONDS = 1
_WATCH_SECONDS = 0.5
_GRACE_SECONDS = 5.0  # for the server to end after the time that its requests have
_SHARED_MEMORY = "serving_"  # then a process id: it outlives processes that are killed
_WAIT_SECONDS = 0.05
_VERSION_ARGUMENT = re.compile(r"/([^/ ]+)/(\d+)/model\.py ")  # of a process of the backend
_FAILED_MODEL = re.compile(r"(failed to load '[^']*' version \d+: .*?)(?:\\n|\"?\n)")
_FAILED_SERVER = re.compile(r"^(?:E(?!.*Cuda).*?\] \"?|error: )(.*?)(?:\\n|\"?\n)", re.MULTILINE)


@dataclass(frozen=True)
class Addresses:
    """Where a server listens.

    Attributes:
        host: The name or number of the interface.
        http: The port of HTTP.
        grpc: The port of gRPC.
        metrics: The port of the metrics.
    """

    host: str
    http: int
    grpc: int
    metrics: int

    def with_free_ports(self) -> Addresses:
        """These addresses with a free port in the place of every 0.

        Raises:
            ValueError: A port is in use, or is not one that this process may use.
        """
        ports = {}
        with contextlib.ExitStack() as held:  # so that no two get the same
            for name in ("http", "grpc", "metrics"):
                ports[name] = held.enter_context(_held_port(self.host, name, getattr(self, name)))
        return Addresses(self.host, **ports)


@contextlib.contextmanager
def _held_port(host: str, name: str, port: int) -> Iterator[int]:
    """Takes a port, so that it is known to be free, until the end of the block."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed one may linger
        try:
            listener.bind((host, port))
            listener.listen()
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(
                f"expected --{name}_port={port} to be free on --host={host}, found: {reason}; give "
                "another, or 0 for any free one"
            ) from None
        yield listener.getsockname()[1]


class TritonServer:
    """A running server; a context that stops it cleanly.

    SIGTERM and SIGINT to this process stop the server: it finishes the requests that it took, for a
    limited time, and refuses others. A second one ends it at once.

    Args:
        repository: The model repository.
        addresses: Where to listen.
        work: An empty folder for what the server needs while it runs, and for its log.
        poll: Whether to look for new versions in the repository every second.
        stop_timeout: How long requests may take to finish when the server stops, in seconds.

    Raises:
        OSError: The server is not installed.
    """

    def __init__(
        self, repository: Path, addresses: Addresses, work: Path, *, poll: bool, stop_timeout: int
    ) -> None:
        self.addresses = addresses
        self.log = work / LOG
        backends = work / "backends"
        lay_out_backend(backends)
        self._stop_signals = 0
        self._longest_stop = stop_timeout + _GRACE_SECONDS
        self._deadline = math.inf
        self._scorers: dict[int, str] = {}  # the version of each process of the backend
        _remove_shared_memory(of_others=True)
        command = [
            os.fspath(server_program()),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={_SHARED_MEMORY}{os.getpid()}_",
            f"--http-address={addresses.host}",
            f"--http-port={addresses.http}",
            f"--grpc-address={addresses.host}",
            f"--grpc-port={addresses.grpc}",
            f"--metrics-address={addresses.host}",
            f"--metrics-port={addresses.metrics}",
            f"--model-control-mode={'poll' if poll else 'none'}",
            f"--repository-poll-secs={_POLL_SECONDS}",
            f"--exit-timeout-secs={stop_timeout}",
            "--disable-auto-complete-config",
            # A new version that cannot be loaded must not take the old one from the balancer.
            "--strict-readiness=false",
            "--allow-gpu-metrics=false",
            "--pinned-memory-pool-byte-size=0",
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=server_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it through this process alone
                preexec_fn=end_with_parent,
            )

    def __enter__(self) -> TritonServer:
        self._handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._process.poll() is None:
                self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._longest_stop)
            self._process.kill()
            self._process.wait()
        finally:
            # A backend's process whose version could not be loaded outlives the server.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            _remove_shared_memory()

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_signals += 1
        self._deadline = time.monotonic() + self._longest_stop
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM if self._stop_signals == 1 else signal.SIGKILL)

    def wait_until_ready(self, model: str) -> bool:
        """Waits until a model answers.

        Returns:
            Whether it answers; False after a signal to stop.

        Raises:
            OSError: The server ended instead; the message says why.
        """
        while self._process.poll() is None:
            if self._is_ready(model):
                self._ended_scorers()  # sees those that are alive
                return True
            time.sleep(_WAIT_SECONDS)
        if not self._stop_signals:
            self._check_end("to start")
        return False

    def _is_ready(self, model: str) -> bool:
        """Whether the server says that a model, or a version such as dlrm/versions/1, answers."""
        host = "127.0.0.1" if self.addresses.host == "0.0.0.0" else self.addresses.host
        url = f"http://{host}:{self.addresses.http}/v2/models/{model}/ready"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=5):
                return True
        except OSError:
            return False

    def wait(self) -> None:
        """Waits until the server ends after a signal.

        Raises:
            OSError: It or a process of its backend ended before that, or it did not finish its
                requests in time.
        """
        lost: set[int] = set()
        while self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_WATCH_SECONDS)
            if time.monotonic() > self._deadline:  # with requests left, it may not end at all
                self._process.kill()
                self._process.wait()
            ended = self._ended_scorers()
            # The server does not notice: it refuses every request, and says that it is ready. One
            # whose version could not be loaded, or is unloaded, is no loss.
            if any(self._is_ready(self._scorers[pid]) for pid in ended & lost):
                self._process.kill()
                self._process.wait()
                raise OSError(
                    "expected the scorer's process to run until SIGTERM, found that it ended; "
                    f"start the server again, and see {self.log}"
                )
            lost = ended
        self._check_end("to run until SIGTERM")

    def _ended_scorers(self) -> set[int]:
        """Processes of the backend that were seen alive and have ended without being waited for."""
        ended = set()
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if child.status() == psutil.STATUS_ZOMBIE:
                        ended.add(child.pid)
                    elif found := _VERSION_ARGUMENT.search(" ".join(child.cmdline())):
                        self._scorers[child.pid] = f"{found[1]}/versions/{found[2]}"
        return ended & self._scorers.keys()

    def _check_end(self, expected: str) -> None:
        code = self._process.returncode
        if self._stop_signals and code == 0:
            return
        if self._stop_signals:
            expected = "to finish its requests and stop"
        end = f"signal {-code}" if code < 0 else f"code {code}"
        raise OSError(
            f"expected Triton's server {expected}, found that it ended with {end}"
            f"{_failure(self.log)}; see {self.log}"
        )


def _remove_shared_memory(of_others: bool = False) -> None:
    """Removes what the server of this process, or those of processes that are gone, left behind."""
    for path in glob.glob(f"/dev/shm/{_SHARED_MEMORY}*"):
        pid = int(Path(path).name.split("_")[1])
        if not psutil.pid_exists(pid) if of_others else pid == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(path)


def _failure(log: Path) -> str:
    """What the log says about the reason, after a colon; nothing if it says nothing."""
    with contextlib.suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
        if found := _FAILED_MODEL.search(text) or _FAILED_SERVER.search(text):
            return f": {found[1]}"
    return ""
