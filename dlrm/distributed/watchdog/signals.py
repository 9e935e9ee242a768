"""Signals as events of the watchdog's thread, delivered whatever the main thread is doing.

Independent of ranks and of what a signal asks for.
"""

from __future__ import annotations

import signal
import socket
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_WAKE_UP = b"\0"  # no signal has this number


class WakeupPipe:
    """Wakes a thread that waits in `select`, on behalf of another thread or of a signal.

    Python runs signal handlers in the main thread, which may be in C++ code forever. It writes the
    number of the signal to this pipe at once, however (`signal.set_wakeup_fd`).
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_handlers: list[Any] = []

    def fileno(self) -> int:
        """Returns the file descriptor to select on."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Wakes the waiting thread."""
        self._writer.send(_WAKE_UP)

    def signals(self) -> list[signal.Signals]:
        """Returns the signals received since the last call. Requires a pipe that is readable."""
        return [signal.Signals(byte) for byte in self._reader.recv(64) if byte in SIGNALS]

    def catch_signals(self) -> None:
        """Makes `SIGNALS` write to this pipe and do nothing else. Call it from the main thread."""
        writer = self._writer.fileno()
        self._old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._old_handlers = [signal.signal(number, _ignore) for number in SIGNALS]

    def close(self) -> None:
        """Closes the pipe and restores the previous signal handlers."""
        if self._old_handlers:
            for number, handler in zip(SIGNALS, self._old_handlers):
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_writer)
        self._reader.close()
        self._writer.close()


def _ignore(number: int, frame: object) -> None:
    """Does nothing: the pipe has received the signal's number already."""
