"""A watchdog thread in each rank: if one rank dies, hangs or fails, all ranks end and say why.

An exchange with a rank that has died, or that never takes part, may block forever in C++, where no
Python exception reaches it. So a thread of each rank holds a connection to rank 0, the hub, and
ends the process whatever its main thread is doing. The same thread receives SIGTERM and SIGINT.
"""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable

from dlrm.distributed.watchdog.connections import HUB, Connection, ConnectionPool, connect_to_hub
from dlrm.distributed.watchdog.heartbeats import (
    Failure,
    Heartbeat,
    HeartbeatTable,
    RankHealth,
    SuspendAwareClock,
)
from dlrm.distributed.watchdog.signals import WakeupPipe

if TYPE_CHECKING:  # importing it would load TensorFlow, which the watchdog does not need
    from dlrm.distributed.collective import Collective

GRACE_SECONDS = 2.0  # for a main thread to fail on its own, with its own message
RAISE_SECONDS = 10.0  # for a main thread that knows of the failure to raise it
DRAIN_SECONDS = 1.0  # for the last messages to arrive
EXIT_HOOK_SECONDS = 2.0
KILLED = 128  # plus the signal's number: the exit code of a process that a signal ends


def do_nothing(line: str) -> None:
    """Does nothing; the default exit hook."""


class Watchdog:
    """A context in which no rank waits forever for another; all ranks enter it together.

    Args:
        collective: The ranks.
        stall_timeout: Seconds that a rank may be silent, or all ranks without progress; 0 for any.
        exit_hook: Called with the reason, one line, before the watchdog ends the process. It runs
            while the main thread may hang, and gets `EXIT_HOOK_SECONDS`.
        catch_signals: Whether the first SIGTERM or SIGINT only sets `signal`, and the second ends
            the process; if false, signals keep their usual effect.

    Attributes:
        signal: The name of the first signal that this rank received; empty before.
    """

    def __init__(
        self,
        collective: Collective,
        stall_timeout: float,
        exit_hook: Callable[[str], None] = do_nothing,
        *,
        catch_signals: bool = False,
    ) -> None:
        self.signal = ""
        self._collective = collective
        self._rank = collective.rank
        self._stall_timeout = stall_timeout
        self._interval = min(1.0, stall_timeout / 10) if stall_timeout else 1.0
        self._exit_hook = exit_hook
        self._catch_signals = catch_signals
        self._progress = (0, "the start")  # the first fields of a Heartbeat
        self._clock = SuspendAwareClock(2 * self._interval)
        self._table = HeartbeatTable((), self._clock.now, stall_timeout)  # of nobody yet
        self._failure: Failure | None = None
        self._has_failed = threading.Event()
        self._grace = GRACE_SECONDS
        self._exit_reason: str | None = None  # set by the main thread: "", or why it failed

    def __enter__(self) -> Watchdog:
        """Connects all ranks.

        Raises:
            ValueError: A rank cannot reach rank 0; raised on every rank.
        """
        self._main_thread = threading.get_ident()
        self._wakeup = WakeupPipe()
        self._connections = ConnectionPool(self._wakeup)
        self._clock.tick()
        watched = range(self._collective.size) if self._rank == HUB else [HUB]
        self._table = HeartbeatTable(watched, self._clock.now, self._stall_timeout)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        try:
            if self._collective.size > 1:
                self._connect()
            if not self._thread.is_alive():
                self._thread.start()
        except BaseException as error:
            self._shut_down(str(error) or repr(error))
            raise
        if self._catch_signals:
            self._wakeup.catch_signals()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Informs the other ranks that this one is done or why it failed; the hub awaits them."""
        self._shut_down("" if kind is None else str(error) or kind.__name__)

    def report_progress(self, activity: str) -> None:
        """Records what the main thread does next; it may wait for other ranks meanwhile."""
        self._progress = (self._progress[0] + 1, activity)

    def health(self) -> dict[int, RankHealth]:
        """Returns how the ranks at work are, as rank 0 knows them; may be called at any time."""
        return self._table.health(self._clock.now)

    def wait_for_failure(self, seconds: float) -> str:
        """Returns why another rank failed, for a main thread whose exchange broke to raise.

        Args:
            seconds: How long to wait for the reason to become known.

        Returns:
            The reason, one line, or nothing if it is not known. After an immediate failure the
            watchdog ends the process before the caller's error leaves the context.
        """
        if self._collective.size == 1:
            return ""
        self._grace = RAISE_SECONDS
        if not self._has_failed.wait(seconds) or self._failure is None:
            self._grace = GRACE_SECONDS
            return ""
        return self._failure.text

    def _connect(self) -> None:
        """Opens the hub, sends its credentials to all ranks, and connects them to it."""
        credentials = ""
        if self._rank == HUB:
            credentials = self._connections.listen()
            self._thread.start()
        credentials = self._collective.gather_text(credentials)[HUB]

        def connect() -> None:
            if self._rank != HUB:
                self._connections.add(connect_to_hub(credentials, self._rank))

        self._collective.together(connect)

    def _shut_down(self, reason: str) -> None:
        """Ends the thread and restores what `__enter__` changed."""
        self._exit_reason = reason
        if self._thread.is_alive():
            self._wakeup.wake()
            self._thread.join()
        else:  # the ranks failed to connect, all of them
            self._connections.send({"done": True})
        self._connections.close()
        self._wakeup.close()

    # All of the following runs in the watchdog's thread.

    def _run(self) -> None:
        """The thread's loop: receives, sends heartbeats, and ends the process after a failure."""
        next_heartbeat = 0.0
        failed_at = 0.0
        while not self._may_end():
            readable, woken = self._connections.wait(self._interval)
            for connection in readable:
                self._receive(connection)
            now = self._clock.tick()
            if now >= next_heartbeat:
                next_heartbeat = now + self._interval
                self._send_heartbeat(now)
            if self._failure is None and (failure := self._find_failure(now)):
                self._fail(failure)
            if self._failure is not None:
                failed_at = failed_at or now
                if self._failure.immediate or now - failed_at >= self._grace:
                    self._end_process(self._failure.text)
            # Last: a launcher that ends all ranks after the death of one sends SIGTERM, too.
            if woken:
                self._handle_signals()
        self._connections.drain(DRAIN_SECONDS)

    def _may_end(self) -> bool:
        """Returns whether the main thread leaves the context; the hub stays until all ranks do."""
        if self._exit_reason is None:
            return False
        if self._exit_reason and self._failure is None:
            self._fail(self._own_failure(self._exit_reason))
        elif not self._exit_reason and self._rank == HUB:
            self._table.remove(HUB, self._clock.now)
            return not self._table.heartbeats
        elif not self._exit_reason:
            self._connections.send({"done": True})
        return True

    def _find_failure(self, now: float) -> Failure | None:
        """Returns what the table shows; only the hub, which hears all ranks, can see a stall."""
        silent = self._table.find_silent(now)
        return silent or (self._table.find_stall(now) if self._rank == HUB else None)

    def _own_failure(self, reason: str) -> Failure:
        reason = " ".join(reason.split())
        return Failure(f"rank {self._rank} stopped: {reason}", immediate=False)

    def _send_heartbeat(self, now: float) -> None:
        heartbeat = Heartbeat(*self._progress, _current_line(self._main_thread))
        if self._rank == HUB:
            self._table.record(HUB, heartbeat, now)
        self._connections.send({"heartbeat": heartbeat})

    def _fail(self, failure: Failure, source: Connection | None = None) -> None:
        """Keeps the first failure and forwards it to all ranks but the one it came from."""
        if self._failure is None:
            self._failure = failure
            self._connections.send({"failure": failure}, skip=source)
            self._has_failed.set()

    def _receive(self, connection: Connection) -> None:
        for message in connection.receive():
            self._handle(message, connection)
        if connection.end:
            self._connections.remove(connection)
            if connection.rank in self._table.heartbeats and self._failure is None:
                self._fail(self._table.lost(connection.rank, connection.end))

    def _handle(self, message: dict[str, Any], connection: Connection) -> None:
        if connection.rank < 0:
            if self._connections.authenticate(connection, message):
                connection.send({"heartbeat": Heartbeat(*self._progress)})
        elif "heartbeat" in message:
            heartbeat = Heartbeat(*message["heartbeat"])
            self._table.record(connection.rank, heartbeat, self._clock.now)
        elif "done" in message:
            self._table.remove(connection.rank, self._clock.now)
        elif "failure" in message:
            self._fail(Failure(*message["failure"]), connection)

    def _handle_signals(self) -> None:
        for number in self._wakeup.signals():
            if self.signal:
                self._fail(self._own_failure(f"a second signal, {number.name}"))
                _write_stderr(f"{number.name}: a second signal; stopping at once")
                os._exit(KILLED + number)
            self.signal = number.name
            if self._failure is None:
                _write_stderr(
                    f"{self.signal}: stopping after this step; a second signal stops at once"
                )

    def _end_process(self, reason: str) -> None:
        """Ends the process wherever its main thread is, after telling the user and all ranks."""

        def report() -> None:
            # After a line break: Horovod, which has lost the rank too, may be writing a line.
            _write_stderr(f"\nerror: {reason}")
            self._exit_hook(reason)

        # In a thread: a full pipe, or a lock of the main thread, must not keep the process alive.
        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        self._connections.drain(DRAIN_SECONDS)
        reporter.join(EXIT_HOOK_SECONDS)
        os._exit(1)


def _current_line(thread: int) -> str:
    """Returns the line of Python that a thread is in."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "ended"
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}"


def _write_stderr(line: str) -> None:
    """Writes a line to standard error, bypassing Python's buffer and its lock."""
    os.write(2, f"{line}\n".encode())
