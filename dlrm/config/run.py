"""The sections that say how a run goes: how long, when to evaluate, when to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from dlrm.config.setting import flag, require_positive


@dataclass(frozen=True)
class RunConfig:
    """What the run does, how long, and from which seed."""

    mode: str = flag(
        "train",
        "train; or only evaluate a checkpoint; or measure how fast it answers requests: the "
        "trainer, a SavedModel of it and the scorer",
        ("train", "test", "inference_benchmark"),
        affects_training=False,
    )
    epochs: int = flag(1, "passes over the training data", affects_training=False)
    early_stop: int = flag(
        -1,
        "stop after this many steps; -1 disables",
        affects_training=False,
        aliases=("max_steps",),
    )
    seed: int = flag(0, "seed of the initial weights, the synthetic data and --shuffle_batch_order")
    stall_timeout: float = flag(
        300.0,
        "abort all ranks after this many seconds without progress; 0 disables the check",
        affects_training=False,
    )
    inference_benchmark_batch_sizes: tuple[int, ...] = flag(
        (1, 64, 4096),
        "samples of a request, for each measurement of --mode=inference_benchmark",
        affects_training=False,
    )
    inference_benchmark_steps: int = flag(
        200, "requests of each of these measurements", affects_training=False
    )

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "inference_benchmark_steps")
        sizes = self.inference_benchmark_batch_sizes
        if not sizes or min(sizes) < 1:
            raise ValueError(
                "expected --inference_benchmark_batch_sizes of integers from 1, such as "
                f"1,64,4096, found {','.join(map(str, sizes)) or 'none'}"
            )
        if self.early_stop != -1 and self.early_stop < 1:
            raise ValueError(
                f"expected --early_stop of 1 or more, or -1 for none, found {self.early_stop}"
            )
        if not 0 <= self.stall_timeout < math.inf:
            raise ValueError(f"expected --stall_timeout of 0 or more, found {self.stall_timeout}")


@dataclass(frozen=True)
class EvaluationConfig:
    """When to evaluate, how finely, and which result ends the run."""

    eval_interval: int = flag(
        3793, "steps between evaluations", affects_training=False, aliases=("test_freq",)
    )
    evals_per_epoch: Optional[int] = flag(
        None,
        "evaluations in an epoch, in place of --eval_interval: one every training samples / "
        "(global batch * this) steps, rounded down; MLPerf asks for 20",
        affects_training=False,
    )
    test_after: float = flag(
        0.0, "epochs before the first evaluation, whole or not", affects_training=False
    )
    test_batch_size: Optional[int] = flag(
        None,
        "samples of an evaluation's batch, over all ranks; default: as many global batches as give "
        "a rank 8192 samples",
        affects_training=False,
    )
    eval_in_last: bool = flag(
        False, "evaluate only once, after the last step", affects_training=False
    )
    auc_target: float = flag(
        0.8025,
        "stop when an evaluation's AUC is above this",
        affects_training=False,
        aliases=("auc_threshold",),
    )
    auc_thresholds: int = flag(
        8000,
        "number of AUC thresholds on the probability scale, and as many again on the logit scale; "
        "with the default, the AUC is exact to 0.0001 or better",
    )

    def __post_init__(self) -> None:
        require_positive(self, "eval_interval")
        if self.evals_per_epoch is not None:
            require_positive(self, "evals_per_epoch")
        if not 0 <= self.test_after < math.inf:
            raise ValueError(f"expected --test_after of 0 epochs or more, found {self.test_after}")
        if self.test_batch_size is not None:
            require_positive(self, "test_batch_size")
        if self.auc_thresholds < 2:
            raise ValueError(f"expected --auc_thresholds of 2 or more, found {self.auc_thresholds}")

    def interval(self, steps_per_epoch: int) -> int:
        """The steps between evaluations.

        Raises:
            ValueError: An epoch has fewer steps than evaluations.
        """
        if self.evals_per_epoch is None:
            return self.eval_interval
        if self.evals_per_epoch > steps_per_epoch:
            raise ValueError(
                f"expected --evals_per_epoch of at most {steps_per_epoch}, the steps of an epoch, "
                f"found {self.evals_per_epoch}; lower it or --global_batch_size"
            )
        return steps_per_epoch // self.evals_per_epoch


@dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, and what the run resumes from."""

    checkpoint_dir: Optional[str] = flag(
        None,
        "folder for checkpoints; if unset, none is written",
        affects_training=False,
        aliases=("save_checkpoint_path",),
    )
    checkpoint_interval: int = flag(
        10000,
        "steps between checkpoints; one more is written at the end, or when a signal stops the run",
        affects_training=False,
    )
    keep_checkpoints: int = flag(
        2, "number of most recent checkpoints to keep", affects_training=False
    )
    resume: str = flag(
        "auto",
        "checkpoint to resume from: auto (the newest intact one in --checkpoint_dir, if any), "
        "none, or a path",
        affects_training=False,
        aliases=("load_checkpoint_path",),
    )
    append_day: Optional[str] = flag(
        None,
        "a checkpoint of the day before, or a folder of them: where --checkpoint_dir holds none, "
        "begin at step 0 with its weights, rows and optimizer state, the tables widened to this "
        "data's",
        affects_training=False,
    )
    ignore_data_change: bool = flag(
        False,
        "resume even if the data is not what the checkpoint was trained on",
        affects_training=False,
    )
    ignore_optimizer_change: bool = flag(
        False,
        "resume even if the checkpoint is of another optimizer; what it lacks of this one's state "
        "begins anew",
        affects_training=False,
    )

    def __post_init__(self) -> None:
        require_positive(self, "checkpoint_interval", "keep_checkpoints")
        if self.append_day is None:
            return
        if self.resume != "auto":
            raise ValueError(
                f"expected --append_day with --resume=auto, found --resume={self.resume}; "
                "--append_day names the checkpoint of the day before, --resume one of this day"
            )
        before = Path(self.append_day).resolve()
        if self.checkpoint_dir and Path(self.checkpoint_dir).resolve() in (before, before.parent):
            raise ValueError(
                f"expected --append_day of another folder than --checkpoint_dir, found "
                f"{self.append_day}; give each day a --checkpoint_dir of its own"
            )
