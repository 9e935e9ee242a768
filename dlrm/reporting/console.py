"""Lines on the console, with a progress bar below them if it is a terminal."""

from __future__ import annotations

import os
from typing import Any, TextIO


class Console:
    """Prints lines; on a terminal with a progress bar below them.

    Args:
        stream: Where to print. Only a terminal gets a bar and escape codes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._progress: Any = None
        self._task: Any = None

    def start_bar(self, step: int, total_steps: int) -> None:
        """Shows the bar.

        Args:
            step: Number of steps done.
            total_steps: Number of steps at which the bar is full.
        """
        # Open MPI gives each rank a terminal, even if its output goes to a file.
        if not self._stream.isatty() or "OMPI_COMM_WORLD_RANK" in os.environ:
            return
        from rich import progress
        from rich.console import Console as RichConsole

        self._progress = progress.Progress(
            progress.TextColumn("training"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[note]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=RichConsole(file=self._stream),
            # The drawing thread shares the interpreter with the training loop.
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("training", completed=step, total=total_steps, note="")
        self._progress.start()

    def advance(self, step: int, note: str | None = None) -> None:
        """Moves the bar.

        Args:
            step: Number of steps done.
            note: Short text next to the bar; None keeps the previous one.
        """
        if self._progress is not None:
            fields = {} if note is None else {"note": note}
            self._progress.update(self._task, completed=step, **fields)

    def line(self, text: str) -> None:
        """Prints a line as it is, above the bar.

        Args:
            text: The line, without its newline.
        """
        if self._progress is None:
            print(text, file=self._stream, flush=True)
            return
        from rich.segment import Segment, Segments

        # A bare segment, as rich would turn the tabs, at which users split, into blanks.
        self._progress.console.print(Segments([Segment(text), Segment.line()]), end="", crop=False)

    def stop_bar(self) -> None:
        """Removes the bar; lines are printed plainly from here on."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
