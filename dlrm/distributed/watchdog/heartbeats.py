"""Who is lost, who is silent, who holds up the others: what is known of each rank, in words.

Knows neither sockets nor threads, and is told the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

AGAIN = "start the same command again to go on from the last checkpoint"
NAMED = 4  # ranks, and groups of them, named in a line; the rest are counted


class Report(NamedTuple):
    """Where the main thread of a rank is.

    Attributes:
        moves: how often it has said that it moved.
        place: what it said last.
        code: the Python line it is in, which tells a rank that waits from one that loops.
    """

    moves: int = 0
    place: str = "the start"
    code: str = ""


class Verdict(NamedTuple):
    """Why the job must end.

    Attributes:
        text: one line for the user.
        at_once: False leaves main threads a moment, since they may be failing for the same reason.
    """

    text: str
    at_once: bool = True


class Roll:
    """The ranks still at work, their last reports and when these came.

    Args:
        ranks: all at the beginning.
        now: seconds of a clock that stands still while this process does.
        stall_timeout: seconds of silence, or without any rank's move, to allow; 0 for any.
    """

    def __init__(self, ranks: Iterable[int], now: float, stall_timeout: float) -> None:
        self.reports = {rank: Report() for rank in ranks}
        self._heard = dict.fromkeys(self.reports, now)
        self._moved = now
        self._stall_timeout = stall_timeout

    def hear(self, rank: int, report: Report, now: float) -> None:
        """A rank has said where it is."""
        if rank in self.reports:
            if report.moves != self.reports[rank].moves:
                self._moved = now
            self.reports[rank], self._heard[rank] = report, now

    def leave(self, rank: int, now: float) -> None:
        """A rank has done its work."""
        if self.reports.pop(rank, None):
            self._moved = now

    def lost(self, rank: int, how: str) -> Verdict:
        """A rank went without a word."""
        return Verdict(
            f"rank {rank} is lost: {how} (last place heard of: "
            f'"{self.reports[rank].place}"); the other ranks stop; {AGAIN}'
        )

    def silent(self, now: float) -> Optional[Verdict]:
        """Whether a rank, though connected, has said nothing for too long."""
        rank = min(self.reports, key=self._heard.__getitem__, default=None)
        if rank is None or not 0 < self._stall_timeout <= now - self._heard[rank]:
            return None
        return Verdict(
            f"rank {rank} has been silent for {self._stall_timeout:g} s (last place heard of: "
            f'"{self.reports[rank].place}"); the other ranks stop; {AGAIN}'
        )

    def stalled(self, now: float) -> Optional[Verdict]:
        """Whether all ranks speak, but none has moved for too long."""
        if not self.reports or not 0 < self._stall_timeout <= now - self._moved:
            return None
        groups: dict[Report, list[int]] = {}
        for rank, report in sorted(self.reports.items(), key=lambda item: (item[1].moves, item[0])):
            groups.setdefault(report, []).append(rank)
        least = min(groups).moves
        behind = [rank for rank, report in self.reports.items() if report.moves == least]
        some = len(behind) < len(self.reports)
        opinion = f"{named(behind)} behind" if some else "none is behind"
        places = [
            f'{named(ranks)} at "{report.place}" ({report.code})'
            for report, ranks in list(groups.items())[:NAMED]
        ]
        return Verdict(
            f"no rank has moved for {self._stall_timeout:g} s; {opinion}: {', '.join(places)}; "
            f"all ranks stop; {AGAIN}"
        )


def named(ranks: Sequence[int]) -> str:
    """Ranks as the subject of a sentence, the verb included."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return f"ranks {', '.join(map(str, ranks[:NAMED]))}{more} are"
