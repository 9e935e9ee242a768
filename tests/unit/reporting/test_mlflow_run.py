"""A run in MLflow: against a server of its own, read back by its HTTP interface alone."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from dlrm.reporting import mlflow_run
from dlrm.reporting.mlflow_run import RUN_FILE, MlflowRun

needs_mlflow = pytest.mark.skipif(
    not importlib.util.find_spec("mlflow"), reason="needs mlflow: make operate-setup"
)
START_SECONDS = 300.0  # many times what idle cores need
SETTINGS = {"lr": 24.0, "bottom_mlp": (512, 256), "run_dir": None}


class MlflowServer:
    """`mlflow server` with a database in a folder; it can be ended and started again.

    Args:
        folder: Where it keeps runs and files.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server"),
                    *("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self._folder / 'runs.db'}"),
                    *("--artifacts-destination", str(self._folder / "files")),
                ],
                cwd=self._folder,
                # Without the processes for the server's own jobs.
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self.answers, START_SECONDS)
        except AssertionError:
            self.end()
            raise

    def answers(self) -> bool:
        """Whether it does now."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def end(self) -> None:
        """Ends it at once, with its workers."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def get(self, path: str, **query: str) -> Any:
        """What the HTTP interface answers."""
        url = f"{self.uri}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)

    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """A curve: its steps and values."""
        found = self.get("metrics/get-history", run_id=run_id, metric_key=name)
        return [(int(point["step"]), point["value"]) for point in found.get("metrics", [])]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    started = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield started
    started.end()


def open_run(uri: str, folder: Path, say: Callable[[str], None]) -> MlflowRun:
    files = [folder / "result.md", folder / "run.png"]
    return MlflowRun(uri, checkpoint_dir=str(folder), files=files, name="first", say=say)


def record(run: MlflowRun, *steps: int) -> None:
    for step in steps:
        curves = {"loss": 1 / step, "exchanged_bytes": 1000}
        run.record("step", step, {**curves, "seconds": 1.0}, curves)


def id_in(folder: Path) -> str:
    return str(json.loads((folder / RUN_FILE).read_text())["run_id"])


@needs_mlflow
@pytest.mark.slow
def test_a_run_and_what_resumes_it_are_one_run(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_run, "END_SECONDS", 60.0)  # as long as busy cores may need
    monkeypatch.setattr(mlflow_run, "STOPPED_END_SECONDS", 60.0)
    monkeypatch.setattr(mlflow_run, "FAILED_END_SECONDS", 60.0)
    said: list[str] = []
    run = open_run(server.uri, tmp_path, said.append)
    run.start(0, {"ranks": 2}, SETTINGS)
    record(run, 10, 20)
    run.record("interrupted", 20, {"message": "stopped by a signal"})
    run.end(success=False)
    run_id = id_in(tmp_path)
    assert server.get("runs/get", run_id=run_id)["run"]["info"]["status"] == "KILLED"
    assert said[0].startswith(f"MLflow: {server.uri}/#/experiments/")
    assert said[0].endswith(f"/runs/{run_id}")

    (tmp_path / "result.md").write_text("the table\n")
    run = open_run(server.uri, tmp_path, said.append)
    run.start(20, {"ranks": 2}, {**SETTINGS, "lr": 12.0})
    record(run, 30)
    quality = {"auc": 0.75}
    run.record("evaluation", 30, {**quality, "seconds": 1.0}, quality)
    run.record("result", 30, {"samples_per_second": 5.0, "reason": "1 epoch", "auc": 0.75})
    run.end(success=True)
    assert id_in(tmp_path) == run_id

    kept = server.get("runs/get", run_id=run_id)["run"]
    assert (kept["info"]["run_name"], kept["info"]["status"]) == ("first", "FINISHED")
    assert {item["key"]: item["value"] for item in kept["data"]["params"]} == {
        "lr": "24.0",
        "bottom_mlp": "(512, 256)",
        "run_dir": "None",
    }
    assert server.history(run_id, "loss") == [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30)]
    assert server.history(run_id, "exchanged_bytes") == [(10, 1000), (20, 1000), (30, 1000)]
    assert server.history(run_id, "auc") == [(30, 0.75)]
    assert server.history(run_id, "result/auc") == []
    assert server.history(run_id, "result/samples_per_second") == [(30, 5.0)]
    files = server.get("artifacts/list", run_id=run_id)["files"]
    assert [(file["path"], int(file["file_size"])) for file in files] == [("result.md", 10)]
    assert len(said) == 2, said

    # A training that begins anew is another run, also beside the same checkpoints.
    run = open_run(server.uri, tmp_path, said.append)
    run.start(0, {"ranks": 2}, SETTINGS)
    run.end(success=False)
    assert id_in(tmp_path) != run_id
    assert server.get("runs/get", run_id=id_in(tmp_path))["run"]["info"]["status"] == "FAILED"


@needs_mlflow
@pytest.mark.slow
def test_a_server_that_goes_costs_no_time_and_gets_the_rest_when_it_is_back(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_run, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(mlflow_run, "END_SECONDS", 60.0)
    said: list[str] = []
    run = open_run(server.uri, tmp_path, said.append)
    run.start(0, {"ranks": 1}, SETTINGS)
    record(run, 1)
    wait_until(lambda: bool(server.history(id_in(tmp_path), "loss")), 60)
    server.end()
    start = time.perf_counter()
    record(run, 2, 3)
    assert time.perf_counter() - start < 0.05
    wait_until(lambda: len(said) == 2, 60)
    assert said[1].startswith(
        f"warning: expected an MLflow server that answers at --mlflow={server.uri}, found: "
        "[Errno 111] Connection refused; start it, or correct the address; the run goes on"
    )
    server.start()
    run.end(success=True)
    assert server.history(id_in(tmp_path), "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert len(said) == 2, said


@needs_mlflow
def test_no_server_at_the_start_is_one_line(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match="expected an MLflow server") as raised:
        open_run(uri, tmp_path, pytest.fail)
    assert str(raised.value) == (
        f"expected an MLflow server that answers at --mlflow={uri}, found: [Errno 111] Connection "
        "refused; start it, or correct the address"
    )


def test_a_missing_client_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mlflow", "mlflow.exceptions", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="expected the package") as raised:
        open_run("http://host:5000", tmp_path, pytest.fail)
    assert str(raised.value) == (
        "expected the package mlflow for --mlflow=http://host:5000, found none; run "
        "make operate-setup"
    )


class OddClient:
    """A client that meets what no server of MLflow answers."""

    def __init__(self, tracking_uri: str) -> None:
        self.create_run = lambda *_, **__: SimpleNamespace(info=SimpleNamespace(run_id="7"))
        self.get_experiment_by_name = lambda _: SimpleNamespace(experiment_id="1")

    def log_batch(self, run_id: str, **values: object) -> None:
        if "metrics" in values:
            raise KeyError("metrics")


def test_an_odd_answer_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        "mlflow": SimpleNamespace(),
        "mlflow.exceptions": SimpleNamespace(MlflowException=RuntimeError),
        "mlflow.tracking": SimpleNamespace(MlflowClient=OddClient),
        "mlflow.entities": SimpleNamespace(
            Metric=lambda *values: values, Param=lambda *values: values
        ),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(mlflow_run, "RETRY_SECONDS", 0.01)
    said: list[str] = []
    run = open_run("http://host:5000", tmp_path, said.append)
    run.start(0, {"ranks": 1}, SETTINGS)
    record(run, 1)
    wait_until(lambda: len(said) == 2, 60)
    run.end(success=False)
    assert len(said) == 2
    assert said[1].startswith("warning: expected an MLflow server that answers at --mlflow=http://")
    assert said[1].endswith("the run goes on, and MLflow may miss part of it")
