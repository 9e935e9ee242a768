"""Shows the progress of a pass: a bar on a terminal, occasional lines elsewhere, or nothing.

This module must not know what a pass does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0


class PassProgress:
    """Shows the progress of one pass, as a context manager around it.

    Args:
        title: A short description of the pass.
        total: The number of units of work; 0 if it is not known.
        style: One of "bar", "lines" and "silent".
    """

    def __init__(self, title: str, total: int, style: str = "silent") -> None:
        self._title = title
        self._total = total
        self._style = style
        self._bar: Any = None
        self._task: Any = None
        self._start = self._last = time.perf_counter()

    def __enter__(self) -> PassProgress:
        """Starts the bar."""
        if self._style == "bar":
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total or None, rate="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, done: int, rows: int) -> None:
        """Shows that `done` units of work and `rows` rows are done."""
        now = time.perf_counter()
        rate = f"{rows / max(now - self._start, 1e-9):,.0f} rows/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=rate)
        elif self._style == "lines" and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            share = f"{100 * done / self._total:.0f} %, " if self._total else ""
            print(f"{self._title}: {share}{rows:,} rows, {rate}", flush=True)


Progress = Callable[[str, int], PassProgress]
"""Makes the display of a pass from its title and its number of units."""
