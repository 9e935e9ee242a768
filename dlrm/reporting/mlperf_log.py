"""MLPerf's training log of a run: which events, when and in which order.

The events are those of the benchmark `dlrm`, rulesets 0.7.0 to 2.1.0. MLPerf's clock runs from
run_start, before the first byte of the data is read, to run_stop; it is never paused. Hence a run
that resumes goes on with its log: no event of its beginning comes again, and the time in between
counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, cast

from dlrm.optim.schedule import Schedule
from dlrm.reporting.machine import hardware
from dlrm.reporting.mlperf_events import CACHE_CLEAR, MlperfEvents, read_events


class MlperfRun(NamedTuple):
    """What the log says of a run beyond its flags.

    Attributes:
        train_samples: Number of training samples.
        eval_samples: Number of test samples.
        steps_per_epoch: Number of steps of an epoch.
        schedule: The learning rate of each step.
        begin: When the process began, in seconds since 1970.
    """

    train_samples: int
    eval_samples: int
    steps_per_epoch: int
    schedule: Schedule
    begin: float


class MlperfLog:
    """Writes the log of one run; an `EventRecorder`.

    Args:
        path: The file.
        run: What the run is.
        warn: Called with one line if the file fails after the start.

    Raises:
        ValueError: The file or MLPerf's package is not usable; the message is one line.
    """

    def __init__(self, path: str, run: MlperfRun, warn: Callable[[str], None]) -> None:
        self._path = path
        self._run = run
        self._warn = warn
        self._epoch = 0  # the last one that began, from 1
        self._auc = 0.0  # of the last evaluation
        self._target = 0.0
        self._resumable = False
        self._events: MlperfEvents | None = None
        try:
            self._logged = read_events(path)
            if not self._has("run_stop"):
                self._events = MlperfEvents(path)
        except OSError as error:
            raise ValueError(self._complaint(error)) from error
        if self._events is None:
            raise ValueError(
                f"--mlperf_log={path}: expected a new file, found the log of a finished run; name "
                "another file"
            )

    def start(
        self, step: int, fields: Mapping[str, object], settings: Mapping[str, object]
    ) -> None:
        """See `EventRecorder`; the clock starts here."""
        assert self._events is not None
        self._target = cast(float, settings["auc_target"])
        self._resumable = settings["checkpoint_dir"] is not None
        try:
            if step:
                self._go_on(self._events, step, settings)
            else:
                self._begin(self._events, fields, settings)
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
        """See `EventRecorder`."""
        if self._events is None or not self._epoch:  # an error before the start
            return
        try:
            self._record(self._events, event, step, fields)
        except OSError as error:
            self._close()
            self._warn(f"warning: {self._complaint(error)}; the run goes on without it")

    def end(self, success: bool) -> None:
        """See `EventRecorder`."""
        self._close()

    def _begin(
        self,
        events: MlperfEvents,
        fields: Mapping[str, object],
        settings: Mapping[str, Any],
    ) -> None:
        """Writes everything up to the start of the first epoch."""
        if any(event["key"] != CACHE_CLEAR for event in self._logged):
            # A run that ended before its first checkpoint: nothing of it counts.
            os.truncate(self._path, 0)
        events.start("init_start", int(1000 * self._run.begin))
        events.event("submission_benchmark", "dlrm")
        events.event("submission_org", settings["mlperf_org"])
        events.event("submission_division", settings["mlperf_division"])
        events.event("submission_status", settings["mlperf_status"])
        events.event(
            "submission_platform", settings["mlperf_platform"] or _platform(fields["ranks"])
        )
        for key, value in self._hyperparameters(settings).items():
            events.event(key, value)
        for tensor in tensors(settings["bottom_mlp"], settings["top_mlp"]):
            events.event("weights_initialization", None, tensor=tensor)
        events.stop("init_stop")
        events.start("run_start")
        events.event("train_samples", self._run.train_samples)
        events.event("eval_samples", self._run.eval_samples)
        events.start("block_start", first_epoch_num=1, epoch_count=settings["epochs"])
        self._start_epoch(events)

    def _go_on(self, events: MlperfEvents, step: int, settings: Mapping[str, object]) -> None:
        """Continues the log of the run's beginning.

        Raises:
            ValueError: There is none, or it says other things of the run.
        """
        if not self._has("run_start"):
            raise ValueError(
                f"--mlperf_log={self._path}: the run goes on after step {step}, but the file does "
                "not hold its beginning, which is when MLPerf's clock starts; name the log of the "
                "beginning, or begin anew with --resume=none"
            )
        logged = {event["key"]: event["value"] for event in self._logged}
        for key, value in self._hyperparameters(settings).items():
            if logged.get(key) != value:
                raise ValueError(
                    f"--mlperf_log={self._path}: expected {key} {logged.get(key)} as when the run "
                    f"began, found {value}; resume with the same flags, or begin anew with "
                    "--resume=none"
                )
        self._epoch = sum(event["key"] == "epoch_start" for event in self._logged)
        events.event("run_resumed", step, epoch_num=self._epoch_num(step))

    def _hyperparameters(self, settings: Mapping[str, Any]) -> dict[str, object]:
        """The events that must not change within a run."""
        schedule = self._run.schedule
        return {
            "seed": settings["seed"],
            "global_batch_size": settings["global_batch_size"],
            "gradient_accumulation_steps": 1,
            "opt_base_learning_rate": schedule.base,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "sgd_opt_base_learning_rate": schedule.base,
            "lr_decay_start_steps": schedule.decay_start_step,
            "sgd_opt_learning_rate_decay_steps": schedule.decay_steps,
            "sgd_opt_learning_rate_decay_poly_power": schedule.decay_power,
        }

    def _record(
        self, events: MlperfEvents, event: str, step: int, fields: Mapping[str, object]
    ) -> None:
        """Writes the events of one of the run's events."""
        epoch_num = self._epoch_num(step)
        while step > self._epoch * self._run.steps_per_epoch:  # seen with the first line after it
            events.stop("epoch_stop", epoch_num=self._epoch)
            self._start_epoch(events)
        if event == "evaluation_start":
            events.start("eval_start", epoch_num=epoch_num)
        elif event == "evaluation":
            self._auc = cast(float, fields["auc"])
            events.event("eval_accuracy", self._auc, epoch_num=epoch_num)
            events.stop("eval_stop", epoch_num=epoch_num)
            if self._auc > self._target:  # the loop ends here; a checkpoint is not in the time
                self._stop(events, "success")
        elif event == "result":
            self._stop(events, "success" if self._auc >= self._target else "aborted")
        elif event == "error" and not self._resumable:
            self._stop(events, "aborted")

    def _start_epoch(self, events: MlperfEvents) -> None:
        self._epoch += 1
        events.start("epoch_start", epoch_num=self._epoch)

    def _stop(self, events: MlperfEvents, status: str) -> None:
        """Stops the clock, and ends the log."""
        events.stop("run_stop", status=status)
        events.stop("epoch_stop", epoch_num=self._epoch)
        events.stop("block_stop", first_epoch_num=1)
        self._close()

    def _epoch_num(self, step: int) -> float:
        """How far the run has come in epochs, from 1 at its start, as MLPerf's logs count."""
        return 1 + step / self._run.steps_per_epoch

    def _has(self, key: str) -> bool:
        return any(event["key"] == key for event in self._logged)

    def _close(self) -> None:
        if self._events is not None:
            self._events.close()
        self._events = None

    def _complaint(self, error: OSError) -> str:
        return (
            f"expected a file that can be written in --mlperf_log={self._path}, found: "
            f"{error.strerror or error}; make its folder, free space there or name another file"
        )


def tensors(bottom: Sequence[int], top: Sequence[int]) -> tuple[str, ...]:
    """MLPerf's names of what is initialised: the tables, and each layer by its number."""
    return (
        "embeddings",
        *(f"bottom_mlp_dense{layer}" for layer in range(1, len(bottom) + 1)),
        *(f"top_mlp_dense{layer}" for layer in range(1, len(top) + 1)),
    )


def _platform(ranks: object) -> str:
    """Names the machine when the user does not: the ranks, and a GPU's or the processor's name."""
    found = hardware()
    gpus = cast("Sequence[str]", found["gpus"] or ())
    return f"{ranks} x {gpus[0] if gpus else found['cpu']}"
