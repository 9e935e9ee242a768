"""The interface of what keeps a run's events: files of several formats, a port, a server.

A `Reporter` tells each of its recorders the same events. They are, with the fields of their line in
`events.jsonl`:

    step              every `log_interval` steps: loss, learning_rate, samples_per_second,
                      exchanged_bytes, seconds
    evaluation_start  an evaluation begins
    evaluation        its result: auc, log_loss, normalised_entropy, samples, seconds
    checkpoint        a checkpoint was written: seconds
    result            the regular end: reason, and the figures of the results table
    interrupted       a signal ended the run: message
    error             an error ended the run: message
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, SupportsFloat, cast


class EventRecorder(Protocol):
    """Keeps the events of one run, on rank 0 alone.

    Only `start` may fail, with one line for the user: before it, nothing has been computed. A later
    failure must not end the run, so a recorder that meets one says so once and records no more.
    """

    def start(
        self, step: int, fields: Mapping[str, object], settings: Mapping[str, object]
    ) -> None:
        """Records the start of the run, right before its first step.

        Args:
            step: Number of steps done by an earlier run that this one continues.
            fields: What the run is: settings, ranks, global_batch, total_steps.
            settings: The run's flags by name.

        Raises:
            ValueError: Nothing can be recorded; the message is one line for the user.
        """

    def record(
        self,
        event: str,
        step: int,
        fields: Mapping[str, object],
        curves: Mapping[str, float] | None = None,
    ) -> None:
        """Records an event.

        Args:
            event: The kind of event, as above.
            step: Number of steps done.
            fields: Its values by name.
            curves: Those of them that are worth a curve over the steps.
        """

    def end(self, success: bool) -> None:
        """Ends the record; called once, also after a failure.

        Args:
            success: Whether the run came to its regular end.
        """


def number(fields: Mapping[str, object], name: str) -> float:
    """Returns a field of an event that holds a number."""
    return float(cast(SupportsFloat, fields[name]))


class EventRecorders:
    """Several recorders as one `EventRecorder`.

    Args:
        recorders: Each is told every event, in this order.
    """

    def __init__(self, recorders: Sequence[EventRecorder]) -> None:
        self._recorders = list(recorders)

    def add(self, recorders: Sequence[EventRecorder]) -> None:
        """Adds recorders behind those that are there.

        Args:
            recorders: Each is told every event from here on.
        """
        self._recorders += recorders

    def start(
        self, step: int, fields: Mapping[str, object], settings: Mapping[str, object]
    ) -> None:
        """See `EventRecorder.start`."""
        for recorder in self._recorders:
            recorder.start(step, fields, settings)

    def record(
        self,
        event: str,
        step: int,
        fields: Mapping[str, object],
        curves: Mapping[str, float] | None = None,
    ) -> None:
        """See `EventRecorder.record`."""
        for recorder in self._recorders:
            recorder.record(event, step, fields, curves)

    def end(self, success: bool) -> None:
        """See `EventRecorder.end`."""
        for recorder in self._recorders:
            recorder.end(success)
