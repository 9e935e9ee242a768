"""What becomes of an error that ends a run: recorded, and explained in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.distributed.watchdog import Watchdog
from dlrm.reporting import Reporter

FAILURE_SECONDS = 5.0  # for the watchdog to find out which rank broke an exchange


@contextlib.contextmanager
def recorded_failure(reporter: Reporter) -> Iterator[None]:
    """Records an error that ends the block in the run's events."""
    try:
        yield
    except (ValueError, OSError, KeyboardInterrupt) as error:
        reporter.fail(str(error) or "interrupted")
        raise


@contextlib.contextmanager
def explained_exchange(collective: Collective, watchdog: Watchdog | None = None) -> Iterator[None]:
    """Turns a failed exchange into one line: the watchdog may know which rank stopped, and why."""
    try:
        yield
    except tf.errors.OpError as error:
        raise ValueError(
            (watchdog.wait_for_failure(FAILURE_SECONDS) if watchdog else "")
            or f"rank {collective.rank}: an exchange failed or an operation could not run, most "
            "likely because another rank stopped, whose own message says why, or is out of reach; "
            f"TensorFlow's words: {' '.join(error.message.split())[-300:]}"
        ) from error
