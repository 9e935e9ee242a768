"""The folder of a run: events, TensorBoard, results table and picture, and what if it fails.

A file that cannot be written at the start stops the run before it has cost anything. One
that fails later (a disk that filled up) only ends the writing of files: hours of training
are worth more than their log.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Callable

from dlrm.reporting.event_files import EventLog, TensorBoardLog
from dlrm.reporting.machine import hardware, versions
from dlrm.reporting.plot import History, plot_run


class RunFolder:
    """Writes the files of one run.

    Args:
        path: the folder; created when missing; None writes nothing.
        warn: told in one line when a file failed after the start.

    Raises:
        ValueError: the folder cannot be written, named in one line.
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
            step: completed iterations.
            fields: of the event "start".
            settings: TensorBoard's hyperparameters.

        Raises:
            ValueError: the folder cannot be written, named in one line.
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
            event: its kind.
            step: completed iterations.
            fields: further keys of its JSON line.
            curves: TensorBoard scalars at this step by tag.
        """
        if self._events is None or self._tensorboard is None:
            return
        try:
            self._events.write(event, step, fields)
            self._tensorboard.scalars(step, curves or {})
        except OSError as error:
            self._give_up(error)

    def write_result(
        self, text: str, history: History, auc_target: float | None, title: str
    ) -> str | None:
        """Writes `result.md` and `run.png`.

        Args:
            text: markdown.
            history: points of the picture.
            auc_target: drawn as a line when given.
            title: of the picture.

        Returns:
            The folder, None if nothing was written.
        """
        if self._events is None or self._path is None:
            return None
        path = os.path.join(self._path, "result.md")
        try:
            with open(f"{path}.partial", "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(f"{path}.partial", path)
            plot_run(os.path.join(self._path, "run.png"), history, auc_target, title)
        except OSError as error:
            self._give_up(error)
            return None
        return self._path

    def end(self, success: bool) -> None:
        """Marks the run as ended and closes the files.

        Args:
            success: whether it came to its regular end.
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
