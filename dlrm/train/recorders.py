"""What else records a run, beside its console lines and its folder, as the settings say."""

from __future__ import annotations

from typing import Callable

import psutil

from dlrm.config import Config
from dlrm.data import Data
from dlrm.reporting.mlperf_log import MlperfLog, MlperfRun
from dlrm.reporting.recorder import EventRecorder


def open_recorders(config: Config, data: Data, warn: Callable[[str], None]) -> list[EventRecorder]:
    """Opens the recorders that a run's settings ask for; called on rank 0 alone.

    Args:
        config: The settings.
        data: The data, opened.
        warn: Prints one line; for a recorder that fails after the start.

    Raises:
        ValueError: A recorder cannot be opened; the message is one line for the user.
    """
    recorders: list[EventRecorder] = []
    if config.mlperf.mlperf_log is not None:
        run = MlperfRun(
            data.train.num_samples,
            data.test.num_samples,
            len(data.train),
            config.optimizer.schedule(config.data.global_batch_size),
            begin=psutil.Process().create_time(),
        )
        recorders.append(MlperfLog(config.mlperf.mlperf_log, run, warn))
    return recorders
