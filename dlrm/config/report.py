"""The sections that say what a run prints, records and shows to other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional
from urllib.parse import urlsplit

from dlrm.config.setting import flag, require_positive


@dataclass(frozen=True)
class ReportConfig:
    """What the run prints and records."""

    run_dir: Optional[str] = flag(
        None,
        "folder for the event log, TensorBoard files, plot and results table",
        affects_training=False,
    )
    log_interval: int = flag(
        1000, "steps between console lines", affects_training=False, aliases=("print_freq",)
    )

    benchmark_warmup_steps: int = flag(
        0,
        "first steps that the average throughput at the end leaves out; with 0, what comes before "
        "the first console line",
        affects_training=False,
    )

    def __post_init__(self) -> None:
        require_positive(self, "log_interval")
        if self.benchmark_warmup_steps < 0:
            raise ValueError(
                "expected --benchmark_warmup_steps of 0 or more, found "
                f"{self.benchmark_warmup_steps}"
            )


@dataclass(frozen=True)
class TrackingConfig:
    """What other programs see of the run."""

    metrics_port: Optional[int] = flag(
        None,
        "port where Prometheus reads the run's figures, on rank 0's machine; 0 takes a free one",
        affects_training=False,
    )
    mlflow: Optional[str] = flag(
        None,
        "address of an MLflow server that keeps settings, curves and results, such as "
        "http://HOST:5000",
        affects_training=False,
    )
    log_path: Optional[str] = flag(
        None, "file for a log in the form of NVIDIA's dllogger", affects_training=False
    )

    def __post_init__(self) -> None:
        if self.metrics_port is not None and not 0 <= self.metrics_port < 1 << 16:
            raise ValueError(
                "expected --metrics_port of 1 to 65535, or 0 for any that is free, found "
                f"{self.metrics_port}"
            )
        if self.mlflow is not None:
            check_server("mlflow", self.mlflow)


def check_server(name: str, address: str) -> None:
    """Checks that a flag is the address of a server, without a password that records would show.

    Raises:
        ValueError: It is not.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"expected --{name}=http://HOST:PORT or https://..., found {address!r}; start a server "
            "with `mlflow server`, also for runs of this machine alone"
        )
    if parts.password is not None:
        raise ValueError(
            f"expected --{name} without a password, which the records of the run would show, found "
            "one; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
