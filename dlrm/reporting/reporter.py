"""Prints and records a run: its steps, losses and evaluations, and the results at its end.

Prints the lines of the SOK DLRM benchmark, which its users' scripts parse. Independent of how
training works.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Callable, TextIO

from dlrm.formats.quantities import plural
from dlrm.reporting.console import Console
from dlrm.reporting.plot import History, plot_run
from dlrm.reporting.recorder import EventRecorder, EventRecorders
from dlrm.reporting.results_table import (
    bullets,
    exit_criterion,
    millions,
    ratio,
    results_table,
    settings_columns,
)
from dlrm.reporting.run_folder import RunFolder
from dlrm.reporting.throughput import Throughput

if TYPE_CHECKING:  # it loads NumPy, which reporting does not need
    from dlrm.metrics import Evaluation


class Reporter:
    """Reports one run. On every rank but 0 each method returns at once.

    Call `start` right before the first step, `step` and `evaluation` as they come, and then exactly
    one of `finish`, `interrupted`, `close` and `fail`.

    Args:
        run_dir: Folder for `events.jsonl`, `tensorboard/`, `result.md` and `run.png`, created if
            missing; None writes no file.
        settings: The run's flags by name. The table reads `auc_target`, `eval_interval`,
            `eval_in_last`, `xla`, `custom_interact`, `amp`, `compress`, `epochs` and `early_stop`.
        rank: Rank of this process.
        size: Number of ranks.
        global_batch: Number of samples in a step, over all ranks.
        total_steps: Number of steps after which the run ends, if nothing stops it earlier; an
            evaluation there is printed as the one "in the end".
        stream: Console, stdout by default; a progress bar is shown if it is a terminal.
        clock: Seconds from any origin; must not run backwards.

    Raises:
        ValueError: The folder cannot be written; the message is one line for the user.
    """

    SAMPLES = "samples"  # what a step's batch consists of

    def __init__(
        self,
        run_dir: str | None,
        settings: Mapping[str, object],
        *,
        rank: int,
        size: int,
        global_batch: int,
        total_steps: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._active = rank == 0
        self._settings = settings
        self._size = size
        self._global_batch = global_batch
        self._total_steps = total_steps
        self._clock = clock
        self._console = Console(sys.stdout if stream is None else stream)
        self._history = History()
        warmup_steps = settings.get("benchmark_warmup_steps", 0)
        assert isinstance(warmup_steps, int)
        self._average = Throughput(global_batch, warmup_steps)
        self._last_evaluation: Evaluation | None = None
        self._folder = RunFolder(run_dir if self._active else None, self._console.line)
        self._records = EventRecorders([self._folder])
        self._first_step = self._step = 0
        self._line_time = self._other_seconds = self._checkpoint_seconds = 0.0

    def add_recorders(self, recorders: Sequence[EventRecorder]) -> None:
        """Adds recorders of the same events, before the run starts; they are ended with it.

        Args:
            recorders: None on any rank but 0, as they are told nothing there.
        """
        self._records.add(recorders)

    def start(self, first_step: int = 0) -> None:
        """Records what the run is, and starts its clock.

        Args:
            first_step: Number of steps done by an earlier run that this one continues.

        Raises:
            ValueError: The folder cannot be written; the message is one line for the user.
        """
        if not self._active:
            return
        start = {
            "settings": self._settings,
            "ranks": self._size,
            "global_batch": self._global_batch,
            "total_steps": self._total_steps,
        }
        self._records.start(first_step, start, self._settings)
        self._console.start_bar(first_step, self._total_steps)
        self._first_step = self._step = first_step
        self._line_time = self._clock()

    def step(
        self, step: int, loss: float, learning_rate: float, exchanged_bytes: int | None = None
    ) -> None:
        """Reports training progress in a line "Iteration: ...".

        Args:
            step: Number of steps done, more than in the previous call.
            loss: Mean loss of the last step, not scaled.
            learning_rate: Learning rate of the last step.
            exchanged_bytes: What rank 0 sent to other ranks in it; None if nobody has counted.
        """
        if not self._active:
            return
        now = self._clock()
        # Evaluations and checkpoints since the previous line do not count as training time.
        seconds = max(0.0, now - self._line_time - self._other_seconds)
        throughput = ratio((step - self._step) * self._global_batch, seconds)
        self._average.add(step - self._step, seconds)
        self._step, self._line_time, self._other_seconds = step, now, 0.0
        self._history.steps.append(step)
        self._history.losses.append(loss)
        self._history.throughputs.append(throughput)
        self._console.line(
            f"Iteration:{step}\tloss:{loss:.6f}\ttime:{seconds:.2f}s\t"
            f"throughput:{self._speed(throughput)}"
        )
        self._console.advance(step, f"loss {loss:.4f}, {self._speed(throughput)} {self.SAMPLES}/s")
        curves = {"loss": loss, "learning_rate": learning_rate, "samples_per_second": throughput}
        if exchanged_bytes is not None:
            curves["exchanged_bytes"] = exchanged_bytes
        self._records.record("step", step, {**curves, "seconds": seconds}, curves)

    def evaluation_start(self, step: int) -> None:
        """Records that an evaluation begins.

        Args:
            step: Number of steps done.
        """
        if self._active:
            self._records.record("evaluation_start", step, {})

    def evaluation(self, result: Evaluation) -> None:
        """Reports an evaluation in a line "Evaluate in ...".

        Args:
            result: Figures of the evaluation. Its seconds do not count as training time.
        """
        if not self._active:
            return
        self._other_seconds += result.seconds
        self._last_evaluation = result
        self._history.evaluation_steps.append(result.step)
        self._history.aucs.append(result.auc)
        at_end = result.step >= self._total_steps or self._settings.get("eval_in_last")
        where = "the end" if at_end else f"{result.step}th iteration"
        self._console.line(
            f"Evaluate in {where}, test time: {result.seconds:.2f}s, AUC: {result.auc:.6f}. "
            f"log loss: {result.log_loss:.6f}, NE: {result.normalised_entropy:.6f}"
        )
        self._console.advance(result.step)
        curves = {
            "auc": result.auc,
            "log_loss": result.log_loss,
            "normalised_entropy": result.normalised_entropy,
        }
        fields = {**curves, "samples": result.samples, "seconds": result.seconds}
        self._records.record("evaluation", result.step, fields, curves)

    def checkpoint(self, step: int, seconds: float) -> None:
        """Reports that a checkpoint was written.

        Args:
            step: Number of steps done.
            seconds: Seconds that the write took. They do not count as training time.
        """
        if not self._active:
            return
        self._other_seconds += seconds
        self._checkpoint_seconds += seconds
        self._records.record("checkpoint", step, {"seconds": seconds})

    def finish(
        self,
        reason: str,
        *,
        training_seconds: float,
        evaluation_seconds: float,
        total_seconds: float,
        steps: int,
    ) -> None:
        """Reports the end of the run: closing lines, results table, result files and plot.

        Args:
            reason: Why the run ended, in words.
            training_seconds: Wall time of the training steps and checkpoints.
            evaluation_seconds: Wall time of all evaluations.
            total_seconds: Wall time of the run.
            steps: Number of steps that this run did.
        """
        if not self._active:
            return
        training_seconds -= self._checkpoint_seconds
        throughput = self._average.average(steps, training_seconds)
        ms_per_iteration = 1e3 * ratio(training_seconds, steps)
        completed = self._first_step + steps
        figures = {
            "training_minutes": training_seconds / 60,
            "evaluation_minutes": evaluation_seconds / 60,
            "total_minutes": total_seconds / 60,
            "ms_per_iteration": ms_per_iteration,
            "samples_per_second": throughput,
        }
        table, row = self._table(figures, completed)
        self._console.stop_bar()
        self._console.line(f"finished: {reason}")
        self._console.line(f"total time: {total_seconds:.2f}s, in {steps} iterations")
        self._console.line(
            f"only training time: {training_seconds:.2f}s, "
            f"average: {ms_per_iteration:.2f}ms/iter, "
            f"average throughput: {self._speed(throughput)}"
            f"({1e3 * ratio(self._global_batch, throughput):.2f}ms/iter)"
        )
        self._console.line(f"only evaluate time: {evaluation_seconds:.2f}s")
        if self._checkpoint_seconds:
            self._console.line(f"only checkpoint time: {self._checkpoint_seconds:.2f}s")
        self._console.line("")
        self._console.line(table)
        details = {
            "reason": reason,
            "steps": steps,
            "ranks": self._size,
            **self._quality(),
            "samples_per_second_with_start": ratio(steps * self._global_batch, training_seconds),
        }
        self._records.record("result", completed, {**row, **details})
        self._write_result(table, details)
        self._records.end(success=True)

    def say(self, line: str) -> None:
        """Prints a line."""
        if self._active:
            self._console.line(line)

    def interrupted(self, message: str) -> None:
        """Reports that a signal ended the run after a checkpoint, and closes the files.

        Args:
            message: One line for the user.
        """
        if not self._active:
            return
        self._console.stop_bar()
        self._console.line(message)
        self._records.record("interrupted", self._step, {"message": message})
        self._records.end(success=False)

    def close(self) -> None:
        """Closes the files of a run that only evaluated, and so has no results of training."""
        if self._active:
            self._console.stop_bar()
            self._records.end(success=True)

    def fail(self, message: str) -> None:
        """Records that the run ended in an error, and closes the files.

        It does not print the message; the caller's exception carries it.

        Args:
            message: One line for the user.
        """
        if not self._active:
            return
        self._console.stop_bar()
        self._records.record("error", self._step, {"message": message})
        self._records.end(success=False)

    def _table(
        self, figures: Mapping[str, object], completed: int
    ) -> tuple[str, Mapping[str, object]]:
        """The results table, and its values by key.

        Args:
            figures: What was measured, by the table's keys.
            completed: Number of steps done at the end of the run.
        """
        auc = self._last_evaluation.auc if self._last_evaluation else None
        row = {
            **settings_columns(self._settings, self._global_batch),
            "exit_criterion": exit_criterion(self._settings, completed, auc),
            **figures,
        }
        return results_table([row]), row

    def _quality(self) -> Mapping[str, object]:
        """The figures of the last evaluation by name; None each if there was none."""
        last = self._last_evaluation
        names = ("auc", "log_loss", "normalised_entropy")
        return {name: getattr(last, name) if last else None for name in names}

    def _speed(self, samples_per_second: float) -> str:
        """A throughput as text."""
        return millions(samples_per_second)

    def _draw(self, path: str) -> None:
        """Writes the plot to a path."""
        target = self._settings.get("auc_target")
        plot_run(
            path,
            self._history,
            target if isinstance(target, (int, float)) else None,
            f"DLRM, global batch {self._global_batch:,}, {plural(self._size, 'rank')}",
        )

    def _write_result(self, table: str, details: Mapping[str, object]) -> None:
        """Writes the results table with further figures, and the plot."""
        folder = self._folder.write_result(f"{table}\n\n{bullets(details)}", self._draw)
        if folder is not None:
            self._console.line(
                f"\nplot of the run: {os.path.join(folder, 'run.png')}\n"
                f"in the same folder: result.md, events.jsonl, tensorboard/"
            )
