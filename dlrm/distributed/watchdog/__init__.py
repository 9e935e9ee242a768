"""Watches over the ranks of a run: one that dies, hangs or gives up ends all, by name and fast.

An exchange with a rank that is gone, or that never comes, may wait for ever, out of Python's reach.
So a thread of each rank keeps a connection of its own to rank 0, the hub, and ends the process
whatever its main thread is doing. The same thread hears SIGTERM and SIGINT. Knows nothing of what
the ranks compute.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Optional

from dlrm.distributed.watchdog.connections import Link, Listener, join
from dlrm.distributed.watchdog.heartbeats import Report, Roll, Verdict
from dlrm.distributed.watchdog.signals import AwakeClock, Bell, code_of, write_line

if TYPE_CHECKING:  # it would load TensorFlow, which the watch has no use for
    from dlrm.distributed.collective import Collective

HUB = 0
GRACE_SECONDS = 2.0  # for a main thread to fail by itself, with words of its own
WORDS_SECONDS = 10.0  # for one that has taken the verdict to raise it
FAREWELL_SECONDS = 1.0  # for last messages to arrive
LAST_WORDS_SECONDS = 2.0
KILLED = 128  # plus the signal's number: the exit code of what a signal ends


def no_last_words(line: str) -> None:
    """Says nothing more."""


class Watch:
    """A context in which no rank waits for ever for another; all ranks enter it together.

    Args:
        collective: the ranks.
        stall_timeout: seconds a rank may be silent, or all ranks without `moved`; 0 for any.
        last_words: called with the line that says why, before the process is ended. It runs beside
            a main thread that may hang, and is given `LAST_WORDS_SECONDS`.
        catch_signals: the first SIGTERM or SIGINT only sets `signal`, the second ends the process.
    """

    def __init__(
        self,
        collective: Collective,
        stall_timeout: float,
        last_words: Callable[[str], None] = no_last_words,
        *,
        catch_signals: bool = False,
    ) -> None:
        self.signal = ""  # name of the first signal that this rank received
        self._collective = collective
        self._rank = collective.rank
        self._stall_timeout = stall_timeout
        self._interval = min(1.0, stall_timeout / 10) if stall_timeout else 1.0
        self._last_words = last_words
        self._catch_signals = catch_signals
        self._at = (0, "the start")
        self._links: list[Link] = []
        self._listener: Optional[Listener] = None
        self._verdict: Optional[Verdict] = None
        self._decided = threading.Event()  # there is a verdict
        self._grace = GRACE_SECONDS
        self._leaving: Optional[str] = None  # set by the main thread: "", or why it failed

    def __enter__(self) -> Watch:
        """Connects all ranks.

        Raises:
            ValueError: on every rank, if one cannot reach rank 0.
        """
        self._main = threading.get_ident()
        self._selector = selectors.DefaultSelector()
        self._bell = Bell()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._clock = AwakeClock(2 * self._interval)
        hub = self._rank == HUB
        known = range(self._collective.size) if hub else [HUB]
        self._roll = Roll(known, self._clock.now, self._stall_timeout)
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        try:
            if self._collective.size > 1:
                self._connect()
            if not self._thread.is_alive():
                self._thread.start()
        except BaseException as error:
            self._leave(str(error) or repr(error))
            raise
        if self._catch_signals:
            self._bell.catch_signals()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """Tells the others that this rank is done, or why it failed; rank 0 waits for the rest."""
        self._leave("" if kind is None else str(error) or kind.__name__)

    def moved(self, place: str) -> None:
        """The main thread has got to `place`, and may now wait for other ranks."""
        self._at = (self._at[0] + 1, place)

    def verdict(self, seconds: float) -> str:
        """What the watch knows of another rank's end, for a main thread whose exchange failed.

        Args:
            seconds: how long to wait for it.

        Returns:
            Why that rank stopped, for the caller to raise; empty if nothing is known. What must
            end the process at once does so before the error has left the context.
        """
        if self._collective.size == 1:
            return ""
        self._grace = WORDS_SECONDS
        if not self._decided.wait(seconds) or self._verdict is None:
            self._grace = GRACE_SECONDS
            return ""
        return self._verdict.text

    def _connect(self) -> None:
        """Opens the hub, tells all ranks where it is, and joins it."""
        offer = ""
        if self._rank == HUB:
            self._listener = Listener()
            self._selector.register(self._listener.socket, selectors.EVENT_READ)
            offer = self._listener.offer()
            self._thread.start()
        offer = self._collective.gather_text(offer)[HUB]

        def join_hub() -> None:
            if self._rank != HUB:
                self._add(join(offer, self._rank))

        self._collective.together(join_hub)

    def _leave(self, why: str) -> None:
        """Has the thread say goodbye, and puts everything back as it was."""
        self._leaving = why
        if self._thread.is_alive():
            self._bell.ring()
            self._thread.join()
        else:  # all failed to connect together
            self._tell({"done": True})
        for link in list(self._links):
            self._remove(link)
        if self._listener:
            self._listener.socket.close()
        self._selector.close()
        self._bell.close()

    # From here on everything runs in the watch's thread.

    def _watch(self) -> None:
        next_report = 0.0
        decided_at = 0.0
        while not self._may_go():
            rings = False
            for key, _ in self._selector.select(self._interval):
                if key.fileobj is self._bell:
                    rings = True
                elif isinstance(key.data, Link):
                    self._read(key.data)
                else:
                    self._admit()
            now = self._clock.tick()
            if now >= next_report:
                next_report = now + self._interval
                self._report(now)
            if self._verdict is None and (found := self._judge(now)):
                self._learn(found)
            if self._verdict is not None:
                decided_at = decided_at or now
                if self._verdict.at_once or now - decided_at >= self._grace:
                    self._end_process(self._verdict.text)
            # Last: a launcher that ends all after one rank's death sends SIGTERM, too.
            if rings:
                self._hear_signals()
        self._part()

    def _may_go(self) -> bool:
        """Whether the main thread leaves; the hub stays until all have."""
        if self._leaving is None:
            return False
        if self._leaving and self._verdict is None:
            self._learn(self._stopped(self._leaving))
        elif not self._leaving and self._rank == HUB:
            self._roll.leave(HUB, self._clock.now)
            return not self._roll.reports
        elif not self._leaving:
            self._tell({"done": True})
        return True

    def _judge(self, now: float) -> Optional[Verdict]:
        """The hub judges all ranks, the others the hub."""
        return self._roll.silent(now) or (self._roll.stalled(now) if self._rank == HUB else None)

    def _stopped(self, why: str) -> Verdict:
        return Verdict(f"rank {self._rank} stopped: {' '.join(why.split())}", at_once=False)

    def _report(self, now: float) -> None:
        """Says where this rank is."""
        report = Report(*self._at, code_of(self._main))
        if self._rank == HUB:
            self._roll.hear(HUB, report, now)
        self._tell({"report": report})

    def _tell(self, message: dict[str, Any], but: Optional[Link] = None) -> None:
        for link in self._links:
            if link is not but and link.rank >= 0:
                link.send(message)

    def _learn(self, verdict: Verdict, source: Optional[Link] = None) -> None:
        """Takes the first verdict, and passes it on."""
        if self._verdict is None:
            self._verdict = verdict
            self._tell({"verdict": verdict}, but=source)
            self._decided.set()

    def _admit(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):  # gone again already
            self._add(Link(self._listener.socket.accept()[0]))

    def _add(self, link: Link) -> None:
        self._links.append(link)
        self._selector.register(link.socket, selectors.EVENT_READ, link)

    def _remove(self, link: Link) -> None:
        self._links.remove(link)
        self._selector.unregister(link.socket)
        link.socket.close()

    def _read(self, link: Link) -> None:
        for message in link.receive():
            if link.rank < 0:
                self._greet(link, message)
            elif "report" in message:
                self._roll.hear(link.rank, Report(*message["report"]), self._clock.now)
            elif "done" in message:
                self._roll.leave(link.rank, self._clock.now)
            elif "verdict" in message:
                self._learn(Verdict(*message["verdict"]), link)
        if link.end:
            self._remove(link)
            if link.rank in self._roll.reports and self._verdict is None:
                self._learn(self._roll.lost(link.rank, link.end))

    def _greet(self, link: Link, hello: Any) -> None:
        assert self._listener is not None
        if self._listener.admits(hello):
            link.rank = hello["rank"]
            link.send({"report": Report(*self._at)})
        else:
            link.end = "a stranger"

    def _hear_signals(self) -> None:
        for number in self._bell.heard():
            if self.signal:
                self._learn(self._stopped(f"a second signal, {number.name}"))
                write_line(f"{number.name}: a second signal; stopping at once")
                os._exit(KILLED + number)
            self.signal = number.name
            if self._verdict is None:
                write_line(
                    f"{self.signal}: stopping after this step; a second signal stops at once"
                )

    def _end_process(self, why: str) -> None:
        """Says why, lets the other ranks hear it, and ends this one wherever its main thread is."""

        def speak() -> None:
            # On a line of its own: Horovod, which has lost the rank too, may be within one of its.
            write_line(f"\nerror: {why}")
            self._last_words(why)

        # Of its own: a full pipe, or a lock that the main thread holds, must not keep us here.
        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        self._part()
        speaker.join(LAST_WORDS_SECONDS)
        os._exit(1)

    def _part(self) -> None:
        """Ends the connections once the other ends have read what was sent."""
        for key in list(self._selector.get_map().values()):
            if not isinstance(key.data, Link):
                self._selector.unregister(key.fileobj)
        for link in self._links:
            with contextlib.suppress(OSError):
                link.socket.shutdown(socket.SHUT_WR)
        end = time.monotonic() + FAREWELL_SECONDS
        while self._links and (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                key.data.receive()
                if key.data.end:
                    self._remove(key.data)
