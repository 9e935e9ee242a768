"""What the measured seconds say: ratios of pairs, their spread, and shares of the bound.

Plain arithmetic, independent of processes and systems.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Turn(NamedTuple):
    """One system's steps in a row.

    Attributes:
        seconds: The median of its steps.
        cpu: Processor seconds of a step, over all threads.
    """

    seconds: float
    cpu: float


@dataclass
class PeerResult:
    """What was measured of a peer.

    Attributes:
        name: The peer.
        versions: What it runs on.
        pairs: In each round, our turn and the peer's, one right after the other.
        loss_error: The largest difference between a loss of the peer and ours, relative to ours.
        row_error: The largest difference between the changes of a row's value, relative to the
            largest change.
    """

    name: str
    versions: str = ""
    pairs: list[tuple[Turn, Turn]] = field(default_factory=list)
    loss_error: float = 0.0
    row_error: float = 0.0

    @property
    def ratios(self) -> list[float]:
        """How many times as fast ours was, in each round."""
        return [peer.seconds / ours.seconds for ours, peer in self.pairs]

    @property
    def cpu_ratios(self) -> list[float]:
        """How many times as much processor time the peer took, in each round."""
        return [peer.cpu / ours.cpu for ours, peer in self.pairs]

    @property
    def seconds(self) -> float:
        """The median over rounds of the peer's seconds for a step."""
        return statistics.median(peer.seconds for _, peer in self.pairs)


def turn_of(seconds: Sequence[float], cpu: float) -> Turn:
    """The turn of these steps, which took so much processor time together."""
    return Turn(statistics.median(seconds), cpu / len(seconds))


def spread(values: Sequence[float]) -> str:
    """The median of values and, in brackets, the least and the greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def share_of_bound(seconds: float, rate: float, operations: float) -> float:
    """The part of the bound that a step reaches.

    Args:
        seconds: Of a step.
        rate: Floating-point operations per second of large products.
        operations: Those of the step's products.
    """
    return operations / rate / seconds


def lines(
    peers: Sequence[PeerResult], versions: str, batch: int, rate: float, operations: float
) -> Iterator[str]:
    """The table of a case.

    Args:
        peers: What was measured of each peer.
        versions: What ours runs on.
        batch: Samples of a step.
        rate: Floating-point operations per second of large products.
        operations: Those of a step's products.
    """
    ours = [pair[0] for peer in peers for pair in peer.pairs]
    if ours:
        seconds = statistics.median(turn.seconds for turn in ours)
        cpu = statistics.median(turn.cpu for turn in ours)
        yield _line("ours", seconds, cpu, batch, share_of_bound(seconds, rate, operations))
        yield f"      {versions}"
    for peer in peers:
        cpu = statistics.median(turn.cpu for _, turn in peer.pairs)
        share = share_of_bound(peer.seconds, rate, operations)
        yield _line(peer.name, peer.seconds, cpu, batch, share)
        yield (
            f"      ours is {spread(peer.ratios)} times as fast, and takes 1 / "
            f"{spread(peer.cpu_ratios)} of its processor time; losses differ by at most "
            f"{peer.loss_error:.1e}, changes of rows by {peer.row_error:.1e}; {peer.versions}"
        )


def _line(name: str, seconds: float, cpu: float, batch: int, share: float) -> str:
    return (
        f"  {name:28} {seconds * 1e3:8.2f} ms  {batch / seconds:10,.0f} samples/s  "
        f"{share:4.2f} of the bound  processor {cpu * 1e3:8.2f} ms"
    )
