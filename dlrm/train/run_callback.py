"""Connects the training loop to a run's reports, watchdog and checkpoints."""

from __future__ import annotations

from typing import Callable

from dlrm.distributed.watchdog import Watchdog
from dlrm.metrics import Evaluation
from dlrm.reporting import Reporter
from dlrm.train.callback import Callback


class RunCallback(Callback):
    """Connects the loop to the reports, the watchdog and the checkpoints.

    Args:
        reporter: Receives losses and evaluations.
        watchdog: Receives the progress; reports whether a signal asks to stop.
        save: Saves the state after a number of steps.
    """

    def __init__(
        self,
        reporter: Reporter,
        watchdog: Watchdog,
        save: Callable[[int], None] | None = None,
    ) -> None:
        self._reporter = reporter
        self._watchdog = watchdog
        self._save = save
        self._exchanged_bytes: int | None = None

    def progress(self, position: str) -> None:
        """See `Callback`."""
        self._watchdog.report_progress(position)

    def stop_requested(self) -> bool:
        """See `Callback`."""
        return bool(self._watchdog.signal)

    def exchanged(self, sent_bytes: int) -> None:
        """See `Callback`."""
        self._exchanged_bytes = sent_bytes

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """See `Callback`."""
        self._reporter.step(step, loss, learning_rate, self._exchanged_bytes)

    def evaluation_start(self, step: int) -> None:
        """See `Callback`."""
        self._reporter.evaluation_start(step)

    def evaluation(self, result: Evaluation) -> None:
        """See `Callback`."""
        self._reporter.evaluation(result)

    def save(self, step: int) -> None:
        """See `Callback`."""
        if self._save:
            self._save(step)
