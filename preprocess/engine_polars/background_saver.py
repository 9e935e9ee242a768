"""Saves the progress of pass two in the background: data first, then the journal.

This module must not know what the data is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

from dlrm.formats import atomic_files
from preprocess.outputs import Save


class BackgroundSaver:
    """Saves one state after another in a thread.

    Args:
        save: Saves a state durably.
    """

    def __init__(self, save: Save) -> None:
        self._save = save
        self._thread = ThreadPoolExecutor(1, "saver")
        self._last: Future[None] | None = None

    def save(
        self,
        state: Mapping[str, Any],
        sync: Callable[[], None],
        written: Sequence[Path],
        obsolete: Sequence[Path],
    ) -> None:
        """Begins to save a state, when the one before it is saved.

        Args:
            state: The state; it must not change any more.
            sync: Brings the open files to the disk.
            written: Other files that the state refers to; they are brought to the disk.
            obsolete: Files that are not needed after the state is saved; they are removed.
        """
        self.wait()

        def work() -> None:
            sync()
            for path in written:
                atomic_files.sync_file(path)
            self._save(state)
            for path in obsolete:
                path.unlink(missing_ok=True)

        self._last = self._thread.submit(work)

    def wait(self) -> None:
        """Waits until the last state is saved; raises its error, if any."""
        if self._last:
            last, self._last = self._last, None
            last.result()

    def close(self) -> None:
        """Waits until the last state is saved, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
