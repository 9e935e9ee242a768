"""What the watch uses of its own process: a bell, a clock, a look at a thread, a voice."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
RING = b"\0"  # no signal has this number


class Bell:
    """Wakes a thread from its select, for another thread or for a signal.

    Python runs signal handlers in the main thread, which may be busy in C++ for ever; the number
    of a signal it writes to a file at once.
    """

    def __init__(self) -> None:
        self._ear, self._button = socket.socketpair()
        self._ear.setblocking(False)
        self._button.setblocking(False)
        self._old_handlers: list[Any] = []

    def fileno(self) -> int:
        """What to select on."""
        return self._ear.fileno()

    def ring(self) -> None:
        """Wakes the thread."""
        self._button.send(RING)

    def heard(self) -> list[signal.Signals]:
        """The signals that came since the last look."""
        return [signal.Signals(byte) for byte in self._ear.recv(64) if byte in SIGNALS]

    def catch_signals(self) -> None:
        """Has `SIGNALS` do nothing but ring. For the main thread."""
        button = self._button.fileno()
        self._old_button = signal.set_wakeup_fd(button, warn_on_full_buffer=False)
        self._old_handlers = [signal.signal(number, ignore) for number in SIGNALS]

    def close(self) -> None:
        """Gives the signals back to whom they had."""
        if self._old_handlers:
            for number, handler in zip(SIGNALS, self._old_handlers):
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_button)
        self._ear.close()
        self._button.close()


class AwakeClock:
    """Seconds that this process could have noticed: it stands still while the process is stopped.

    After a stop the others' messages are waiting to be read; nobody was silent.

    Args:
        longest: more than this between two ticks does not count.
    """

    def __init__(self, longest: float) -> None:
        self.now = 0.0
        self._longest = longest
        self._last = time.monotonic()

    def tick(self) -> float:
        """Moves on to now."""
        time_now = time.monotonic()
        self.now += min(time_now - self._last, self._longest)
        self._last = time_now
        return self.now


def code_of(thread: int) -> str:
    """The line of Python a thread is in."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "ended"
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} in {code.co_name}"


def write_line(line: str) -> None:
    """Writes to standard error, past Python's buffer and its lock."""
    os.write(2, f"{line}\n".encode())


def ignore(number: int, frame: object) -> None:
    """A handler that leaves the signal to the bell."""
