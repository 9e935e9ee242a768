"""The average throughput of a run, as the benchmark counts it: without the run's start.

Plain arithmetic on steps and seconds; what a step is, is no concern of this module.
"""

from __future__ import annotations

from dlrm.reporting.results_table import ratio


class Throughput:
    """Averages the throughput of one run.

    Args:
        global_batch: Number of samples in a step, over all ranks.
        warmup_steps: Number of first steps to leave out, if the run does more than these. With 0,
            the first interval, which includes tracing and compilation, is left out if there is
            another; what comes after the last interval does not count either.
    """

    def __init__(self, global_batch: int, warmup_steps: int = 0) -> None:
        self._global_batch = global_batch
        self._warmup_steps = warmup_steps
        self._intervals: list[tuple[int, float]] = []  # steps and seconds

    def add(self, steps: int, seconds: float) -> None:
        """Adds an interval of training; one must end where the warm-up does.

        Args:
            steps: Number of steps in it.
            seconds: How long they took.
        """
        self._intervals.append((steps, seconds))

    def average(self, steps: int, seconds: float) -> float:
        """Returns samples per second; NaN if nothing was measured.

        Args:
            steps: Number of steps of the run.
            seconds: How long the training took.
        """
        if 0 < self._warmup_steps < steps:
            done = 0
            for count, taken in self._intervals:
                if done < self._warmup_steps:
                    done, seconds = done + count, seconds - taken
            return ratio((steps - done) * self._global_batch, seconds)
        intervals = self._intervals[1:] or self._intervals or [(steps, seconds)]
        counts, times = zip(*intervals)
        return ratio(sum(counts) * self._global_batch, sum(times))
