"""The section of MLPerf's training log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from dlrm.config.setting import flag
from dlrm.layers.interaction_shape import DOT

CLOSED_LAYERS = (3, 5)  # of the bottom and the top MLP; the checker knows each by name


@dataclass(frozen=True)
class MlperfConfig:
    """MLPerf's training log, and what it says of the submission."""

    mlperf_log: Optional[str] = flag(
        None,
        "file for MLPerf's training log of the benchmark dlrm; it must be new, or the unfinished "
        "log of the run that this one resumes",
        affects_training=False,
    )
    mlperf_division: str = flag(
        "open",
        "the submission's division; closed needs 3 bottom and 5 top layers",
        ("closed", "open"),
        affects_training=False,
    )
    mlperf_org: str = flag("unnamed", "the submitting organisation", affects_training=False)
    mlperf_platform: Optional[str] = flag(
        None,
        "the submitted system; default: the ranks and the name of a GPU, or of the processor",
        affects_training=False,
    )
    mlperf_status: str = flag(
        "research",
        "whether the submitted system can be bought",
        ("cloud", "onprem", "preview", "research"),
        affects_training=False,
    )

    def __post_init__(self) -> None:
        for name in ("mlperf_org", "mlperf_platform"):
            if getattr(self, name) == "":
                raise ValueError(f"expected --{name} of at least one character, found none")

    def check(
        self,
        mode: str,
        verify_data: str,
        bottom_layers: int,
        top_layers: int,
        interaction: str,
        other_training: Mapping[str, Any],
    ) -> None:
        """Checks that the run can be logged as a run of MLPerf.

        Raises:
            ValueError: It cannot; the message names the remedy.
        """
        if self.mlperf_log is None:
            return
        if mode != "train":
            raise ValueError(f"--mlperf_log records a training, found --mode={mode}; leave it out")
        if verify_data == "full":
            raise ValueError(
                "--mlperf_log with --verify_data=full: MLPerf's clock must start before the data "
                "is read; check it in a run of its own, then set --verify_data=size"
            )
        for name, value in other_training.items():
            raise ValueError(
                "--mlperf_log: expected the benchmark's plain SGD with polynomial decay, found "
                f"--{name}={value}; leave one of them out"
            )
        if self.mlperf_division == "closed" and interaction != DOT:
            raise ValueError(
                f"--mlperf_division=closed: expected --interaction={DOT}, found "
                f"--interaction={interaction}; set --mlperf_division=open for another model"
            )
        found = (bottom_layers, top_layers)
        if self.mlperf_division == "closed" and found != CLOSED_LAYERS:
            raise ValueError(
                f"--mlperf_division=closed: expected {CLOSED_LAYERS[0]} layers in --bottom_mlp and "
                f"{CLOSED_LAYERS[1]} in --top_mlp, found {found[0]} and {found[1]}; set "
                "--mlperf_division=open for another model"
            )
