"""A run's figures at a port, as Prometheus reads them.

The port answers with the newest values at any time; what it costs the training is one dictionary's
update at each line of the console. Names follow Prometheus' rules: base units, counters that end
in `_total`, and points in time where an age would otherwise grow old.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Callable

from dlrm.reporting.machine import versions
from dlrm.reporting.recorder import number
from dlrm.version import __version__

if TYPE_CHECKING:
    from dlrm.distributed.watchdog.heartbeats import RankHealth

PREFIX = "dlrm_"
# How often a launcher has started this job again.
RESTART_COUNTS = ("DLRM_RESTARTS", "SLURM_RESTART_COUNT")

# What the curves of an event are called at the port, where that differs, and what they mean.
_GAUGES = {
    "loss": ("loss", "Mean loss of the last logged step."),
    "learning_rate": ("learning_rate", "Learning rate of the last logged step."),
    "samples_per_second": (
        "samples_per_second",
        "Samples trained in a second, over all ranks, since the logged step before.",
    ),
    "exchanged_bytes": (
        "step_exchanged_bytes",
        "Bytes that rank 0 sent to other ranks in the last logged step.",
    ),
    "auc": ("auc", "AUC of the last evaluation."),
    "log_loss": ("log_loss", "Log loss of the last evaluation."),
    "normalised_entropy": ("normalised_entropy", "Normalised entropy of the last evaluation."),
}


class PrometheusMetrics:
    """Serves a run's figures on a port; an `EventRecorder`.

    Args:
        port: The port; 0 takes any free one.
        ranks: Returns what is known of each rank's process, at any time and from any thread.

    Attributes:
        port: The port that answers.

    Raises:
        ValueError: The port cannot be had; the message is one line for the user.
    """

    def __init__(self, port: int, ranks: Callable[[], Mapping[int, RankHealth]]) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

        self._ranks = ranks
        self._counts: dict[str, tuple[float, str]] = {}
        self._gauges: dict[str, tuple[float, str]] = {}
        self._global_batch = 0
        self._info: dict[str, str] = {}
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)  # this process' memory, cores' time and open files
        try:
            self._server, _ = start_http_server(port, registry=registry)
        except OSError as error:
            raise ValueError(
                f"expected a free port in --metrics_port={port}, found: {error.strerror}; choose "
                "another, or 0 for any"
            ) from error
        self.port: int = self._server.server_port

    def start(
        self, step: int, fields: Mapping[str, object], settings: Mapping[str, object]
    ) -> None:
        """See `EventRecorder.start`."""
        self._global_batch = int(number(fields, "global_batch"))
        self._info = {
            **{name.replace("-", "_"): version for name, version in versions().items()},
            "version": __version__,
            "ranks": str(fields["ranks"]),
            "global_batch": str(self._global_batch),
        }
        self._gauges["planned_steps"] = (
            number(fields, "total_steps"),
            "Steps after which the run ends, if nothing ends it earlier.",
        )
        self._gauges["start_timestamp_seconds"] = (time.time(), "When the first step began.")
        self._count(step)

    def record(
        self,
        event: str,
        step: int,
        fields: Mapping[str, object],
        curves: Mapping[str, float] | None = None,
    ) -> None:
        """See `EventRecorder.record`."""
        if event == "step":
            self._count(step)
        for name, value in (curves or {}).items():
            known, text = _GAUGES.get(name, (name, f"Of the last {event}."))
            self._gauges[known] = (value, text)
        if event in ("evaluation", "checkpoint"):
            seconds = number(fields, "seconds")
            self._gauges[f"{event}_seconds"] = (seconds, f"What the last {event} took.")
            self._gauges[f"{event}_step"] = (step, f"Steps done before the last {event}.")
            self._gauges[f"{event}_last_success_timestamp_seconds"] = (
                time.time(),
                f"When the last {event} was complete.",
            )

    def end(self, success: bool) -> None:
        """See `EventRecorder.end`; the port closes."""
        self._server.shutdown()
        self._server.server_close()

    def collect(self) -> Iterator[Any]:
        """Yields the metrics for one answer of the port, in the port's thread."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        if self._info:  # a count of 0 before a resumed run has started would look like a new one
            info = GaugeMetricFamily(f"{PREFIX}run_info", "What runs.", labels=list(self._info))
            info.add_metric(list(self._info.values()), 1)
            yield info
        for name, (value, text) in list(self._counts.items()):
            yield CounterMetricFamily(PREFIX + name, text, value)
        yield CounterMetricFamily(
            f"{PREFIX}restarts", "How often the launcher has started the job again.", restarts()
        )
        for name, (value, text) in list(self._gauges.items()):
            yield GaugeMetricFamily(PREFIX + name, text, value)
        yield from self._rank_metrics()

    def _rank_metrics(self) -> Iterator[Any]:
        """Yields the health of each rank that is at work."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        ages = GaugeMetricFamily(
            f"{PREFIX}rank_heartbeat_age_seconds",
            "Time since rank 0 has heard a rank, which speaks about once a second.",
            labels=["rank"],
        )
        progress = CounterMetricFamily(
            f"{PREFIX}rank_progress",
            "How often a rank's main thread has begun a step or a batch of an evaluation.",
            labels=["rank"],
        )
        for rank, health in self._ranks().items():
            ages.add_metric([str(rank)], health.age)
            progress.add_metric([str(rank)], health.progress)
        yield ages
        yield progress

    def _count(self, step: int) -> None:
        self._counts = {
            "steps": (step, "Steps since the training began anew; as of the last logged one."),
            "samples": (step * self._global_batch, "Samples trained in these, over all ranks."),
        }


def restarts() -> int:
    """How often a launcher has started this job again; 0 under one that does not say."""
    texts = (os.environ.get(name, "") for name in RESTART_COUNTS)
    return next((int(text) for text in texts if text.isdecimal()), 0)
