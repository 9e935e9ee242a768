"""Stall detection: the last heartbeat of each rank, and which rank is lost, silent or behind.

Free of sockets and threads; the caller passes the heartbeats and the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

REMEDY = "start the same command again to continue from the last checkpoint"
MAX_NAMED = 4  # ranks, and groups of ranks, named in one line; the others are only counted


class Heartbeat(NamedTuple):
    """What the main thread of a rank is doing.

    Attributes:
        progress: How often the main thread has reported progress.
        activity: What the main thread reported last.
        line: The Python line the main thread is in; it distinguishes a rank that waits for others
            from one that loops.
    """

    progress: int = 0
    activity: str = "the start"
    line: str = ""


class RankHealth(NamedTuple):
    """How a rank's process is, for those who look on.

    Attributes:
        age: Seconds since its last heartbeat.
        progress: How often its main thread has reported progress.
    """

    age: float
    progress: int


class Failure(NamedTuple):
    """Why the job must end.

    Attributes:
        text: One line for the user.
        immediate: Whether to end the process at once. If false, the main thread gets a moment
            first, because it may be about to fail for the same reason.
    """

    text: str
    immediate: bool = True


class SuspendAwareClock:
    """A clock in seconds that stands still while the process is suspended.

    After a suspension the messages of the other ranks are still unread, so the suspended time must
    not count as their silence.

    Args:
        longest: The most that counts between two ticks, in seconds; the rest was a suspension.
    """

    def __init__(self, longest: float) -> None:
        self.now = 0.0
        self._longest = longest
        self._last = time.monotonic()

    def tick(self) -> float:
        """Advances the clock to the present and returns it."""
        monotonic = time.monotonic()
        self.now += min(monotonic - self._last, self._longest)
        self._last = monotonic
        return self.now


class HeartbeatTable:
    """The ranks still at work, with the last heartbeat of each and its time.

    Args:
        ranks: The ranks at work in the beginning.
        now: The time, in seconds of a `SuspendAwareClock`; also in the methods.
        stall_timeout: Seconds that a rank may be silent, or all ranks without progress; 0 for any.

    Attributes:
        heartbeats: The last heartbeat of each rank still at work.
    """

    def __init__(self, ranks: Iterable[int], now: float, stall_timeout: float) -> None:
        self.heartbeats = {rank: Heartbeat() for rank in ranks}
        self._heard_at = dict.fromkeys(self.heartbeats, now)
        self._progress_at = now
        self._stall_timeout = stall_timeout

    def record(self, rank: int, heartbeat: Heartbeat, now: float) -> None:
        """Records a heartbeat; that of a rank which has finished is ignored."""
        if rank in self.heartbeats:
            if heartbeat.progress != self.heartbeats[rank].progress:
                self._progress_at = now
            self.heartbeats[rank], self._heard_at[rank] = heartbeat, now

    def health(self, now: float) -> dict[int, RankHealth]:
        """Returns how the ranks at work are; may be called from another thread."""
        beats = list(self.heartbeats.items())
        return {rank: RankHealth(now - self._heard_at[rank], beat.progress) for rank, beat in beats}

    def remove(self, rank: int, now: float) -> None:
        """Removes a rank that has finished its work."""
        if self.heartbeats.pop(rank, None):
            self._progress_at = now

    def lost(self, rank: int, how: str) -> Failure:
        """Returns the failure of a rank whose connection ended before its work did."""
        return Failure(
            f"rank {rank} is lost: {how} ({self._last_activity(rank)}); the other ranks stop; "
            f"{REMEDY}"
        )

    def find_silent(self, now: float) -> Failure | None:
        """Returns the failure of a connected rank that has sent no heartbeat for too long."""
        rank = min(self.heartbeats, key=self._heard_at.__getitem__, default=None)
        if rank is None or not 0 < self._stall_timeout <= now - self._heard_at[rank]:
            return None
        return Failure(
            f"rank {rank} has sent no heartbeat for {self._stall_timeout:g} s "
            f"({self._last_activity(rank)}); the other ranks stop; {REMEDY}"
        )

    def find_stall(self, now: float) -> Failure | None:
        """Returns a failure if all ranks send heartbeats, but none progressed for too long."""
        if not self.heartbeats or not 0 < self._stall_timeout <= now - self._progress_at:
            return None
        groups: dict[Heartbeat, list[int]] = {}
        by_progress = sorted(self.heartbeats.items(), key=lambda item: (item[1].progress, item[0]))
        for rank, heartbeat in by_progress:
            groups.setdefault(heartbeat, []).append(rank)
        least = min(groups).progress
        behind = [rank for rank, beat in self.heartbeats.items() if beat.progress == least]
        some_behind = len(behind) < len(self.heartbeats)
        summary = f"{_ranks_are(behind)} behind" if some_behind else "none is behind"
        activities = [
            f'{_ranks_are(ranks)} at "{heartbeat.activity}" ({heartbeat.line})'
            for heartbeat, ranks in list(groups.items())[:MAX_NAMED]
        ]
        return Failure(
            f"no rank has made progress for {self._stall_timeout:g} s; {summary}: "
            f"{', '.join(activities)}; all ranks stop; {REMEDY}"
        )

    def _last_activity(self, rank: int) -> str:
        return f'last reported activity: "{self.heartbeats[rank].activity}"'


def _ranks_are(ranks: Sequence[int]) -> str:
    """Returns ranks as the subject of a sentence, including the verb."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    more = f" and {len(ranks) - MAX_NAMED} more" if len(ranks) > MAX_NAMED else ""
    return f"ranks {', '.join(map(str, ranks[:MAX_NAMED]))}{more} are"
