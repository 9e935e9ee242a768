"""What Prometheus reads at the port, from its text alone, against the events that a run told."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from dlrm.distributed.watchdog.heartbeats import RankHealth
from dlrm.reporting.prometheus_metrics import PrometheusMetrics

HEALTH = {0: RankHealth(0.5, 12), 3: RankHealth(42.0, 11)}
START = {"ranks": 4, "global_batch": 1000, "total_steps": 300}
STEP = {
    "loss": 0.25,
    "learning_rate": 0.125,
    "samples_per_second": 5e5,
    "exchanged_bytes": 7_000_000,
}
QUALITY = {"auc": 0.75, "log_loss": 0.5, "normalised_entropy": 0.875}


@pytest.fixture
def metrics() -> Iterator[PrometheusMetrics]:
    served = PrometheusMetrics(0, lambda: HEALTH)
    yield served
    served.end(success=True)


def text_of(metrics: PrometheusMetrics) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()


def values(text: str) -> dict[str, float]:
    """Each sample of Prometheus' text format: name with its labels, and value."""
    found = re.findall(r"^(\w+(?:\{.*?\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def tell(metrics: PrometheusMetrics) -> None:
    metrics.start(0, START, {})
    metrics.record("step", 100, {**STEP, "seconds": 2.0}, STEP)
    metrics.record("evaluation_start", 100, {})
    metrics.record("evaluation", 100, {**QUALITY, "samples": 50, "seconds": 1.5}, QUALITY)
    metrics.record("checkpoint", 110, {"seconds": 0.25})


def test_what_a_run_tells_is_read_at_the_port(
    metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLRM_RESTARTS", "2")
    before = time.time()
    tell(metrics)
    found = values(text_of(metrics))
    expected = {
        "dlrm_steps_total": 100,
        "dlrm_samples_total": 100_000,
        "dlrm_planned_steps": 300,
        "dlrm_restarts_total": 2,
        "dlrm_loss": 0.25,
        "dlrm_learning_rate": 0.125,
        "dlrm_samples_per_second": 500_000,
        "dlrm_step_exchanged_bytes": 7_000_000,
        "dlrm_auc": 0.75,
        "dlrm_log_loss": 0.5,
        "dlrm_normalised_entropy": 0.875,
        "dlrm_evaluation_step": 100,
        "dlrm_evaluation_seconds": 1.5,
        "dlrm_checkpoint_step": 110,
        "dlrm_checkpoint_seconds": 0.25,
        'dlrm_rank_heartbeat_age_seconds{rank="0"}': 0.5,
        'dlrm_rank_heartbeat_age_seconds{rank="3"}': 42,
        'dlrm_rank_progress_total{rank="0"}': 12,
        'dlrm_rank_progress_total{rank="3"}': 11,
    }
    assert {name: found.get(name) for name in expected} == expected
    for name in ("start", "evaluation_last_success", "checkpoint_last_success"):
        assert before <= found[f"dlrm_{name}_timestamp_seconds"] <= time.time()
    (info,) = (name for name in found if name.startswith("dlrm_run_info"))
    assert 'ranks="4"' in info
    assert 'global_batch="1000"' in info
    assert found["process_resident_memory_bytes"] > 1e6


def test_nothing_is_claimed_before_it_is_known(metrics: PrometheusMetrics) -> None:
    """A resumed run counts on; there is no evaluation and no checkpoint of age 0 yet."""
    before = values(text_of(metrics))
    assert {name.partition("{")[0] for name in before if name.startswith("dlrm")} == {
        *("dlrm_restarts_total", "dlrm_rank_heartbeat_age_seconds", "dlrm_rank_progress_total")
    }
    metrics.start(40, START, {})
    found = values(text_of(metrics))
    assert found["dlrm_steps_total"] == 40
    assert found["dlrm_samples_total"] == 40_000
    assert not [name for name in found if re.match("dlrm_(loss|auc|evaluation|checkpoint)", name)]


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)")
def test_prometheus_finds_no_fault_with_the_names(metrics: PrometheusMetrics) -> None:
    tell(metrics)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text_of(metrics), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match="expected a free port") as raised:
            PrometheusMetrics(port, dict)
    assert str(raised.value) == (
        f"expected a free port in --metrics_port={port}, found: Address already in use; choose "
        "another, or 0 for any"
    )


def test_the_port_closes_at_the_end() -> None:
    served = PrometheusMetrics(0, dict)
    port = served.port
    served.end(success=False)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
