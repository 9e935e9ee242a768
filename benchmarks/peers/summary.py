"""What the measured seconds say: ratios of pairs, their spread, and shares of the bound.

Plain arithmetic, independent of processes and systems.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NOT_QUIET = 1.25  # the third quartile of the rate of products over the first


class Turn(NamedTuple):
    """One system's steps in a row.

    Attributes:
        seconds: The median of its steps.
        cpu: Processor seconds of a step, over all threads.
    """

    seconds: float
    cpu: float

    @classmethod
    def of(cls, seconds: Sequence[float], cpu: float) -> Turn:
        """The turn of these steps, which took so much processor time together."""
        return cls(statistics.median(seconds), cpu / len(seconds))


@dataclass(frozen=True)
class Difference:
    """How far a peer's first steps are from ours.

    Attributes:
        losses: The largest difference between losses of a step, relative to ours.
        rows: The largest difference between changes of a row's value, relative to the largest
            change of ours.
    """

    losses: float
    rows: float

    @classmethod
    def between(
        cls,
        losses: Sequence[Sequence[float]],
        changes: Sequence[NDArray[np.float64]],
    ) -> Difference:
        """Compares ours, which comes first, with a peer's.

        Args:
            losses: The losses of both, a step after another.
            changes: By how much the same steps changed the same rows of both.
        """
        ours, peers = map(np.array, losses)
        largest = np.abs(changes[0]).max()
        return cls(
            float((np.abs(peers - ours) / np.abs(ours)).max()),
            float(np.abs(changes[1] - changes[0]).max() / largest),
        )

    def __str__(self) -> str:
        """Returns the differences in words."""
        return f"losses differ by {self.losses:.1e}, changes of rows by {self.rows:.1e}"


@dataclass(frozen=True)
class PeerResult:
    """What was measured of a peer.

    Attributes:
        title: The peer.
        versions: What it runs on.
        difference: How far its first steps are from ours.
        pairs: In each round, our turn and the peer's, one right before the other.
    """

    title: str
    versions: str
    difference: Difference
    pairs: Sequence[tuple[Turn, Turn]]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast ours was, in each round."""
        return [peer.seconds / ours.seconds for ours, peer in self.pairs]

    @property
    def cpu_ratios(self) -> list[float]:
        """How many times as much processor time the peer took, in each round."""
        return [peer.cpu / ours.cpu for ours, peer in self.pairs]


@dataclass
class CaseResult:
    """What was measured of a case.

    Attributes:
        title: The case.
        batch: Samples of a step.
        operations: Floating-point operations of a step's products.
        versions: What ours runs on.
        products: Operations a second of large products, in each round.
        peers: What was measured of each peer.
    """

    title: str
    batch: int
    operations: float
    versions: str
    products: list[float] = field(default_factory=list)
    peers: list[PeerResult] = field(default_factory=list)

    @property
    def bound(self) -> float:
        """Seconds that a step's products would take at the rate of large ones."""
        return self.operations / statistics.median(self.products)

    def turns(self) -> dict[str, list[Turn]]:
        """The turns of each system by its title, ours first, which has one for each of a peer's."""
        ours = [pair[0] for peer in self.peers for pair in peer.pairs]
        return {"ours": ours, **{peer.title: [p for _, p in peer.pairs] for peer in self.peers}}

    def lines(self) -> Iterator[str]:
        """The table: a line for each system, and below it how it compares with ours."""
        rate = statistics.median(self.products) / 1e9
        yield (
            f"  large products: {rate:.0f} GFLOP/s ({min(self.products) / 1e9:.0f} - "
            f"{max(self.products) / 1e9:.0f}); bound: {self.bound * 1e3:.2f} ms a step"
        )
        middle = statistics.quantiles(self.products, n=4)
        if middle[-1] > NOT_QUIET * middle[0]:
            yield (
                "  the machine was not quiet: OpenMP's waiting threads then cost PyTorch more than "
                "the work; measure again, or set OMP_WAIT_POLICY=passive"
            )
        remarks = {"ours": self.versions}
        for peer in self.peers:
            remarks[peer.title] = (
                f"ours is {spread(peer.ratios)} times as fast; the peer takes "
                f"{spread(peer.cpu_ratios)} times the processor time; {peer.difference}"
            )
        for title, turns in self.turns().items():
            if turns:
                yield self._line(title, turns)
                yield f"      {remarks[title]}"

    def _line(self, title: str, turns: Sequence[Turn]) -> str:
        seconds = statistics.median(turn.seconds for turn in turns)
        cpu = statistics.median(turn.cpu for turn in turns)
        least, most = (pick(turn.seconds for turn in turns) * 1e3 for pick in (min, max))
        return (
            f"  {title:24} {seconds * 1e3:8.2f} ms ({least:.2f} - {most:.2f})  "
            f"{self.batch / seconds:9,.0f} samples/s  {self.bound / seconds:4.2f} of the bound  "
            f"processor {cpu * 1e3:.2f} ms"
        )


def spread(values: Sequence[float]) -> str:
    """The median of values and, in brackets, the least and the greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"
