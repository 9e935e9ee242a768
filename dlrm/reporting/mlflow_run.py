"""A run in MLflow: its settings, curves, results and plot, by MLflow's own client.

The server must answer at the start. From then on, a thread of its own talks to it, so that neither
a slow server nor one that is gone costs the training anything: what it does not take is kept, sent
once it answers again, and lost only beyond a bound.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, NamedTuple

from dlrm.formats.json_files import read_json_object, write_json_object

RUN_FILE = "mlflow_run.json"  # beside the checkpoints; names the run that a resumed training is of
MAX_WAITING = 20_000  # points of curves
MAX_POINTS = 1000  # of one request, by MLflow's own limit
MAX_PARAMETERS = 100  # of one request, by MLflow's own limit
MAX_VALUE = 500  # characters of a setting, by the limit of older servers
MAX_REASON = 200  # characters
EXPERIMENT = "dlrm"
RESULTS = (  # of the results table; the others are curves or settings
    *("training_minutes", "evaluation_minutes", "total_minutes"),
    *("ms_per_iteration", "samples_per_second"),
)
RETRY_SECONDS = 10.0
POLL_SECONDS = 0.25
END_SECONDS = 15.0  # for the last points and files
STOPPED_END_SECONDS = 3.0  # launchers give a rank 5 s when others have ended with code 75
FAILED_END_SECONDS = 1.0  # the watchdog gives a failed process 2 s for its last words

# The client's own choices would let a server that is down hold up the start for minutes, tell
# MLflow's makers what uses it, and print two lines at the end.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Point(NamedTuple):
    """One point of a curve.

    Attributes:
        name: The curve.
        value: The point's y.
        step: The point's x.
        milliseconds: When it was measured, since 1970.
    """

    name: str
    value: float
    step: int
    milliseconds: int


class MlflowRun:
    """Keeps a run in MLflow; an `EventRecorder`.

    Args:
        uri: The server's address.
        checkpoint_dir: Where the file lies that names the MLflow run to a training that resumes;
            None if this run goes on with none.
        files: What the run writes at its end, to be kept with it.
        name: The run's name; empty lets MLflow choose one.
        say: Prints one line: where the run is seen, and once if the server fails after the start.

    Raises:
        ValueError: The client is missing, or the server does not answer; the message is one line
            for the user.
    """

    def __init__(
        self,
        uri: str,
        *,
        checkpoint_dir: str | None,
        files: Sequence[Path],
        name: str,
        say: Callable[[str], None],
    ) -> None:
        self._uri = uri.rstrip("/")
        self._run_file = Path(checkpoint_dir, RUN_FILE) if checkpoint_dir else None
        self._files = files
        self._name = name
        self._say = say
        self._warned = False
        self._status = "FAILED"  # unless an event says otherwise
        self._waiting: queue.Queue[Point] = queue.Queue(MAX_WAITING)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        for variable, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(variable, value)
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ModuleNotFoundError as error:
            raise ValueError(
                f"expected the package mlflow for --mlflow={uri}, found none; run "
                "make operate-setup"
            ) from error
        self._errors = (MlflowException, OSError)
        self._client = MlflowClient(tracking_uri=uri)
        try:
            self._experiment = self._find_experiment()
        except self._errors as error:
            raise ValueError(self._complaint(error)) from error

    def start(
        self, step: int, fields: Mapping[str, object], settings: Mapping[str, object]
    ) -> None:
        """See `EventRecorder.start`; a training that resumes goes on in its MLflow run."""
        try:
            self._run_id = self._find_run(resumes=step > 0) or self._create_run(fields, settings)
        except self._errors as error:
            raise ValueError(self._complaint(error)) from error
        if self._run_file is not None:
            write_json_object(self._run_file, {"run_id": self._run_id, "server": self._uri})
        self._say(f"MLflow: {self._uri}/#/experiments/{self._experiment}/runs/{self._run_id}")
        self._thread.start()

    def record(
        self,
        event: str,
        step: int,
        fields: Mapping[str, object],
        curves: Mapping[str, float] | None = None,
    ) -> None:
        """See `EventRecorder.record`; never waits for the server."""
        values: Mapping[str, object] = curves or {}
        if event == "result":
            values = {f"result/{name}": fields[name] for name in RESULTS if name in fields}
        elif event == "interrupted":
            self._status = "KILLED"
        now = time.time_ns() // 10**6
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                try:
                    self._waiting.put_nowait(Point(name, float(value), step, now))
                except queue.Full:
                    self._warn_once(f"it has not answered for long; {MAX_WAITING:,} points wait")

    def end(self, success: bool) -> None:
        """See `EventRecorder.end`; gives the server some seconds for what is left."""
        if not self._thread.is_alive():
            return
        if success:
            self._status = "FINISHED"
        self._ending.set()
        limits = {"FAILED": FAILED_END_SECONDS, "KILLED": STOPPED_END_SECONDS}
        self._thread.join(limits.get(self._status, END_SECONDS))
        if self._thread.is_alive():
            self._warn_once("it has not taken all of the run")

    def _find_experiment(self) -> str:
        """The id of the experiment that MLflow's own variable names, created if missing."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _find_run(self, resumes: bool) -> str:
        """The id of the run to go on with; empty if there is none on this server."""
        named = os.environ.get("MLFLOW_RUN_ID", "")
        if not named and resumes and self._run_file is not None and self._run_file.exists():
            remedy = "remove it to begin a new MLflow run"
            named = str(read_json_object(self._run_file, remedy).get("run_id"))
            runs = self._client.search_runs(
                [self._experiment], f"attributes.run_id = '{named}'", max_results=1
            )
            named = named if runs else ""
        if named:
            self._client.update_run(named, status="RUNNING")
        return named

    def _create_run(self, fields: Mapping[str, object], settings: Mapping[str, object]) -> str:
        """Creates a run with the settings as its parameters; returns its id."""
        from mlflow.entities import Param

        tags = {
            "mlflow.source.name": sys.argv[0],
            "mlflow.source.type": "JOB",
            "ranks": str(fields["ranks"]),
        }
        created = self._client.create_run(self._experiment, tags=tags, run_name=self._name or None)
        run_id: str = created.info.run_id
        parameters = [Param(name, str(value)[:MAX_VALUE]) for name, value in settings.items()]
        for first in range(0, len(parameters), MAX_PARAMETERS):
            self._client.log_batch(run_id, params=parameters[first : first + MAX_PARAMETERS])
        return run_id

    # The following runs in the thread.

    def _send(self) -> None:
        """Sends what waits until the run ends, then its files and how it ended."""
        points: list[Point] = []
        while True:
            last = self._ending.is_set()
            points = points or self._take()
            try:
                if points:
                    self._send_points(points)
                    points = []
                elif last:
                    self._finish()
                    return
            except Exception as error:  # whatever the client meets, the training goes on
                self._warn_once(self._complaint(error))
                if last:
                    return
                self._ending.wait(RETRY_SECONDS)

    def _take(self) -> list[Point]:
        """The points that wait, as many as one request takes; waits a moment for the first."""
        points: list[Point] = []
        try:
            points.append(self._waiting.get(timeout=POLL_SECONDS))
            while len(points) < MAX_POINTS:
                points.append(self._waiting.get_nowait())
        except queue.Empty:
            pass
        return points

    def _send_points(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(point.name, point.value, point.milliseconds, point.step) for point in points
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _finish(self) -> None:
        if self._status == "FINISHED":
            for path in self._files:
                if path.exists():
                    self._client.log_artifact(self._run_id, str(path))
        self._client.set_terminated(self._run_id, self._status)

    def _warn_once(self, line: str) -> None:
        if not self._warned:
            self._warned = True
            self._say(f"warning: {line}; the run goes on, and MLflow may miss part of it")

    def _complaint(self, error: Exception) -> str:
        """One line about an error of the client: its first cause, such as the network's."""
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        text = " ".join(str(cause).split())
        return (
            f"expected an MLflow server that answers at --mlflow={self._uri}, found: "
            f"{text[:MAX_REASON]}; "
            "start it, or correct the address"
        )
