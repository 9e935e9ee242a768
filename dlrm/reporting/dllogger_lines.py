"""A run's log in the form of NVIDIA's dllogger: lines of `DLLL` and a JSON object.

The programs that read the logs of NVIDIA's PyTorch DLRM read these too: the settings are the line
whose step is "PARAMETER", the results the one whose step is []. In between, dllogger's form has one
line for each console line, which that DLRM does not write to its file: [epoch, step of the epoch].
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Callable

from dlrm.reporting.event_log import LineFile, jsonable
from dlrm.reporting.recorder import number
from dlrm.reporting.results_table import ratio

SUMMARY: list[int] = []
UNITS = {
    "best_auc": None,
    "average_train_throughput": "samples/s",
    "average_test_throughput": "samples/s",
}
# The names that the PyTorch DLRM gives to the values of our events.
_NAMES = {
    "step": {"loss": "loss", "learning_rate": "lr", "samples_per_second": "throughput"},
    "evaluation": {"auc": "auc", "log_loss": "validation_loss"},
}


class DlloggerLines:
    """Writes a run's log for the readers of dllogger's; an `EventRecorder`.

    Args:
        path: The file; lines are appended, so that a resumed run goes on in it.
        steps_per_epoch: Number of steps in a pass over the training data.
        warn: Called with one line if the file fails after the start.

    Raises:
        ValueError: The file cannot be written; the message is one line for the user.
    """

    def __init__(self, path: str, steps_per_epoch: int, warn: Callable[[str], None]) -> None:
        self._path = path
        self._steps_per_epoch = max(1, steps_per_epoch)
        self._warn = warn
        self._began = time.time()
        self._results: dict[str, float] = {}
        self._tested = (0.0, 0.0)  # samples, seconds
        try:
            self._file: LineFile | None = LineFile(path)
        except OSError as error:
            raise ValueError(self._complaint(error)) from error

    def start(
        self, step: int, fields: Mapping[str, object], settings: Mapping[str, object]
    ) -> None:
        """See `EventRecorder.start`."""
        for name, unit in UNITS.items():
            self._write("METADATA", metric=name, metadata={"unit": unit})
        self._write("LOG", step="PARAMETER", data=settings)

    def record(
        self,
        event: str,
        step: int,
        fields: Mapping[str, object],
        curves: Mapping[str, float] | None = None,
    ) -> None:
        """See `EventRecorder.record`."""
        names = _NAMES.get(event, {})
        data = {name: fields[ours] for ours, name in names.items() if ours in fields}
        if event == "step":
            self._results["training_loss"] = number(fields, "loss")
        elif event == "evaluation":
            self._compare(step, number(fields, "auc"), number(fields, "log_loss"))
            self._add_test(number(fields, "samples"), number(fields, "seconds"))
        elif event == "inference":
            batch = int(number(fields, "batch_size"))
            self._results[f"mean_inference_latency_batch_{batch}"] = number(fields, "mean")
            speed = number(fields, "samples_per_second")
            self._results[f"mean_inference_throughput_batch_{batch}"] = speed
        elif event == "result":
            self._results["average_train_throughput"] = number(fields, "samples_per_second")
        if data:
            self._write("LOG", step=self._position(step), data=data)

    def end(self, success: bool) -> None:
        """See `EventRecorder.end`; the results are written if there are any."""
        if success and self._results:
            self._write("LOG", step=SUMMARY, data=self._results)
        if self._file is not None:
            self._file.close()

    def _compare(self, step: int, auc: float, loss: float) -> None:
        """Keeps the best evaluation so far."""
        if auc > self._results.get("best_auc", -1.0):
            self._results["best_auc"] = auc
            self._results["best_epoch"] = step / self._steps_per_epoch
        best = self._results.get("best_validation_loss", loss)
        self._results["best_validation_loss"] = min(loss, best)

    def _add_test(self, samples: float, seconds: float) -> None:
        """Adds an evaluation to what the throughput of all is computed from."""
        self._tested = self._tested[0] + samples, self._tested[1] + seconds
        self._results["average_test_throughput"] = ratio(*self._tested)

    def _position(self, step: int) -> list[int]:
        """The epoch from 0 and the step within it from 1, as the PyTorch DLRM counts them."""
        epoch = max(0, step - 1) // self._steps_per_epoch
        return [epoch, step - epoch * self._steps_per_epoch]

    def _write(self, kind: str, **fields: object) -> None:
        if self._file is None:
            return
        now = time.time()
        line = {
            "timestamp": str(now),
            "datetime": str(datetime.fromtimestamp(now).astimezone()),
            "elapsedtime": str(now - self._began),
            "type": kind,
            **fields,
        }
        text = f"DLLL {json.dumps(jsonable(line), allow_nan=False)}"
        try:
            self._file.append(text)
        except OSError as error:
            self._file.close()
            self._file = None
            self._warn(f"warning: {self._complaint(error)}; the run goes on without this log")

    def _complaint(self, error: OSError) -> str:
        return (
            f"expected a file that can be written in --log_path={self._path}, found: "
            f"{error.strerror or error}; make its folder, free space there or choose another "
            "--log_path"
        )
