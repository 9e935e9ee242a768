"""The folder of a run: event log, TensorBoard files, results table and plot.

If a file cannot be written at the start, the run stops before it has cost anything. If one fails
later, say on a full disk, only the writing of files ends: hours of training are worth more than
their log.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Callable

from dlrm.formats import atomic_files
from dlrm.reporting.event_log import EventLog
from dlrm.reporting.machine import hardware, versions
from dlrm.reporting.tensorboard_log import TensorBoardLog

RESULT_FILES = ("result.md", "run.png")


class RunFolder:
    """Writes the files of one run.

    Args:
        path: The folder, created if missing; None writes nothing.
        warn: Called with one line if a file fails after the start.

    Raises:
        ValueError: The folder cannot be written; the message is one line for the user.
    """

    def __init__(self, path: str | None, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._events: EventLog | None = None
        self._tensorboard: TensorBoardLog | None = None
        if path is None:
            return
        try:
            os.makedirs(path, exist_ok=True)
            self._events = EventLog(os.path.join(path, "events.jsonl"))
            self._tensorboard = TensorBoardLog(os.path.join(path, "tensorboard"))
        except OSError as error:
            self._close()
            raise ValueError(self._complaint(error)) from error

    def start(
        self, step: int, fields: Mapping[str, object], settings: Mapping[str, object]
    ) -> None:
        """Records the start of the run, and what it runs on.

        Args:
            step: Number of steps done.
            fields: Fields of the event "start".
            settings: Hyperparameters for TensorBoard.

        Raises:
            ValueError: The folder cannot be written; the message is one line for the user.
        """
        if self._events is None or self._tensorboard is None:
            return
        try:
            self._events.write(
                "start", step, {**fields, "versions": versions(), "hardware": hardware()}
            )
            self._tensorboard.start_session(settings, ["auc"])
        except OSError as error:
            self._close()
            raise ValueError(self._complaint(error)) from error

    def record(
        self,
        event: str,
        step: int,
        fields: Mapping[str, object],
        curves: Mapping[str, float] | None = None,
    ) -> None:
        """Records an event.

        Args:
            event: The kind of event.
            step: Number of steps done.
            fields: Further keys of its JSON line.
            curves: TensorBoard scalars at this step, by tag.
        """
        if self._events is None or self._tensorboard is None:
            return
        try:
            self._events.write(event, step, fields)
            self._tensorboard.scalars(step, curves or {})
        except OSError as error:
            self._give_up(error)

    def write_result(self, text: str, draw: Callable[[str], None]) -> str | None:
        """Writes `result.md` and `run.png`.

        Args:
            text: Markdown of the results.
            draw: Writes the plot to the path that it is given.

        Returns:
            The folder; None if nothing was written.
        """
        if self._events is None or self._path is None:
            return None
        table, plot = (os.path.join(self._path, name) for name in RESULT_FILES)
        try:
            atomic_files.write_text(table, text)
            draw(plot)
        except OSError as error:
            self._give_up(error)
            return None
        return self._path

    def end(self, success: bool) -> None:
        """Marks the run as ended and closes the files.

        Args:
            success: Whether the run came to its regular end.
        """
        if self._tensorboard is not None:
            try:
                self._tensorboard.end_session(success)
            except OSError as error:
                self._give_up(error)
        self._close()

    def _give_up(self, error: OSError) -> None:
        self._close()
        self._warn(f"warning: {self._complaint(error)}; the run goes on without its files")

    def _close(self) -> None:
        for file in (self._events, self._tensorboard):
            if file is not None:
                file.close()
        self._events = self._tensorboard = None

    def _complaint(self, error: OSError) -> str:
        return (
            f"expected a folder that can be written in --run_dir={self._path}, "
            f"found: {error.strerror or error} ({error.filename or self._path}); "
            "free space there or choose another --run_dir"
        )
