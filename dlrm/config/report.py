"""The sections that say what a run prints, records and shows to other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

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

    def __post_init__(self) -> None:
        require_positive(self, "log_interval")
