"""What else records a run, beside its console lines and its folder, as the settings say."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

import psutil

from dlrm.config import Config, TrackingConfig
from dlrm.data import Data
from dlrm.distributed.watchdog.heartbeats import RankHealth
from dlrm.reporting.dllogger_lines import DlloggerLines
from dlrm.reporting.mlflow_run import MlflowRun
from dlrm.reporting.mlperf_log import MlperfLog, MlperfRun
from dlrm.reporting.prometheus_metrics import PrometheusMetrics
from dlrm.reporting.recorder import EventRecorder
from dlrm.reporting.run_folder import RESULT_FILES


def open_recorders(
    config: Config,
    data: Data,
    *,
    health: Callable[[], Mapping[int, RankHealth]],
    say: Callable[[str], None],
) -> list[EventRecorder]:
    """Opens the recorders that a run's settings ask for; called on rank 0 alone.

    Args:
        config: The settings.
        data: The data, opened.
        health: Returns how the ranks are.
        say: Prints one line; also for a recorder that fails after the start.

    Raises:
        ValueError: A recorder cannot be opened; the message is one line for the user.
    """
    recorders = open_trackers(
        config.tracking,
        run_dir=config.report.run_dir,
        # An evaluation of a checkpoint is no part of the run that trained it.
        checkpoint_dir=config.checkpoint.checkpoint_dir if config.run.mode == "train" else None,
        steps_per_epoch=len(data.train),
        health=health,
        say=say,
    )
    if config.mlperf.mlperf_log is not None:
        run = MlperfRun(
            data.train.num_samples,
            data.test.num_samples,
            len(data.train),
            config.optimizer.schedule(config.data.global_batch_size),
            begin=psutil.Process().create_time(),
        )
        recorders.append(MlperfLog(config.mlperf.mlperf_log, run, say))
    return recorders


def open_trackers(
    tracking: TrackingConfig,
    *,
    run_dir: str | None,
    checkpoint_dir: str | None,
    steps_per_epoch: int,
    health: Callable[[], Mapping[int, RankHealth]],
    say: Callable[[str], None],
) -> list[EventRecorder]:
    """Opens what shows the run to other programs.

    Args:
        tracking: Which of them.
        run_dir: The run's folder; None if it has none.
        checkpoint_dir: The folder of its checkpoints; None if it does not go on from any.
        steps_per_epoch: As for `open_recorders`; so are the others.
        health: See there.
        say: See there.

    Raises:
        ValueError: As for `open_recorders`.
    """
    recorders: list[EventRecorder] = []
    if tracking.metrics_port is not None:
        metrics = PrometheusMetrics(tracking.metrics_port, health)
        say(f"metrics: http://{platform.node()}:{metrics.port}/metrics")
        recorders.append(metrics)
    if tracking.mlflow is not None:
        files = [Path(run_dir, name) for name in RESULT_FILES] if run_dir else []
        name = Path(run_dir).name if run_dir else ""
        mlflow_run = MlflowRun(
            tracking.mlflow, checkpoint_dir=checkpoint_dir, files=files, name=name, say=say
        )
        recorders.append(mlflow_run)
    if tracking.log_path is not None:
        recorders.append(DlloggerLines(tracking.log_path, steps_per_epoch, say))
    return recorders
