"""The section that says how weights change by their gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Optional

from dlrm.config.setting import flag
from dlrm.optim.schedule import DECAYS, Schedule, scaled_steps

TABLE_OPTIMIZERS = ("sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl")
DENSE_OPTIMIZERS = ("sgd", "momentum", "adagrad", "adam", "ftrl")
# What sums of squares start with; those of ftrl must be above 0.
INITIAL_SUMS = {"adagrad": 0.0, "rowwise_adagrad": 0.0, "ftrl": 0.1}
# The flags with which a training is no longer that of MLPerf's benchmark dlrm.
BEYOND_MLPERF = (
    *("optimizer", "dense_optimizer", "dense_lr", "weight_decay", "dense_weight_decay"),
    *("clip_norm", "lr_schedule"),
)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizers of tables and dense layers, and the schedule of their learning rate."""

    optimizer: str = flag(
        "sgd",
        "optimizer of the tables; lazy: a step changes the rows of its batch and their state, and "
        "no others, also with momentum and adam",
        TABLE_OPTIMIZERS,
    )
    dense_optimizer: str = flag("sgd", "optimizer of the dense layers", DENSE_OPTIMIZERS)
    lr: float = flag(24.0, "learning rate after the warm-up")
    dense_lr: Optional[float] = flag(
        None, "learning rate of the dense layers after the warm-up; default: --lr"
    )
    lr_schedule: str = flag(
        "poly",
        "how the learning rate falls from --decay_start_step on: by a power of the steps left, not "
        "at all, by half a cosine, or at once every --decay_steps",
        DECAYS,
    )
    warmup_steps: Optional[int] = flag(
        None, "steps of linear warm-up; default: 2750 * 55296 / global batch"
    )
    warmup_factor: int = flag(
        0, "f: the warm-up begins at 1 - 1 / 2^f of the learning rate; 0 begins at 0"
    )
    decay_start_step: Optional[int] = flag(
        None, "step at which the decay begins; default: 49315 * 55296 / global batch"
    )
    decay_steps: Optional[int] = flag(
        None,
        "steps of the decay, or, with --lr_schedule=step, between two falls; default: "
        "27772 * 55296 / global batch",
    )
    decay_power: int = flag(
        2, "p: the decay of --lr_schedule=poly goes with the share of its steps that is left, to p"
    )
    decay_ratio: float = flag(0.1, "what a fall of --lr_schedule=step multiplies the rate by")
    decay_end_lr: float = flag(0.0, "learning rate below which the decay does not go, and after it")
    embedding_grad: str = flag(
        "mean",
        "gradient that updates the tables: mean, of the loss averaged over all ranks; sum, of the "
        "ranks' losses added up, as in the SOK benchmark",
        ("mean", "sum"),
    )
    clip_norm: Optional[float] = flag(
        None,
        "most that the norm of all gradients together may be, of dense layers and tables on all "
        "ranks; larger ones are scaled down to it",
    )
    weight_decay: float = flag(
        0.0,
        "share of the weights, times the learning rate, that a step takes away, apart from the "
        "gradient; of the tables it takes that of the rows in its batch",
    )
    dense_weight_decay: Optional[float] = flag(
        None, "--weight_decay of the dense layers; default: the same"
    )
    momentum: float = flag(0.9, "share of the velocity that a step of momentum keeps")
    beta1: float = flag(0.9, "share of the mean of gradients that a step of adam keeps")
    beta2: float = flag(0.999, "share of the mean of squared gradients that a step of adam keeps")
    epsilon: float = flag(
        1e-8, "least denominator of adagrad, rowwise_adagrad and adam, outside the root"
    )
    initial_accumulator: Optional[float] = flag(
        None,
        "what sums of squared gradients start with; default: 0 with adagrad and rowwise_adagrad, "
        "0.1 with ftrl",
    )
    ftrl_l1: float = flag(0.0, "L1 penalty of ftrl")
    ftrl_l2: float = flag(0.0, "L2 penalty of ftrl")

    def __post_init__(self) -> None:
        self._require_positive("lr", "dense_lr", "clip_norm", "epsilon")
        for name in ("weight_decay", "dense_weight_decay", "ftrl_l1", "ftrl_l2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"expected --{name} of 0 or more, found {value}")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"expected --{name} of 0 or more and below 1, found {getattr(self, name)}"
                )
        for part, rate, decay in (
            ("", self.lr, self.weight_decay),
            ("dense_", self.rate_of_dense, self.decay_of_dense),
        ):
            if rate * decay >= 1:
                raise ValueError(
                    f"--{part}weight_decay: expected less than {1 / rate:g} (1 / --{part}lr), "
                    f"found {decay:g}, which takes the whole weight in one step; lower either"
                )
        self._check_effect()

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"expected --{name} above 0, found {value}")

    def _check_effect(self) -> None:
        """Refuses what the chosen optimizers and schedule do not look at."""
        chosen = {self.optimizer, self.dense_optimizer}
        ftrl = "ftrl" in chosen
        for name in ("ftrl_l1", "ftrl_l2"):
            if getattr(self, name) and not ftrl:
                raise ValueError(
                    f"--{name} is a penalty of ftrl alone, found --optimizer={self.optimizer} and "
                    f"--dense_optimizer={self.dense_optimizer}; set one of them to ftrl, or set "
                    "--weight_decay"
                )
        initial = self.initial_accumulator
        if initial is not None:
            if not chosen & INITIAL_SUMS.keys():
                raise ValueError(
                    f"--initial_accumulator: expected an optimizer of {', '.join(INITIAL_SUMS)}, "
                    f"found --optimizer={self.optimizer} and --dense_optimizer="
                    f"{self.dense_optimizer}; leave it out"
                )
            if not 0 <= initial < math.inf or (ftrl and initial == 0):
                bound = "above 0 for ftrl" if ftrl else "of 0 or more"
                raise ValueError(f"expected --initial_accumulator {bound}, found {initial}")
        for name in ("decay_start_step", "decay_steps"):
            if self.lr_schedule == "constant" and getattr(self, name) is not None:
                raise ValueError(
                    f"--lr_schedule=constant has no decay, found --{name}={getattr(self, name)}; "
                    "leave it out, or choose another --lr_schedule"
                )

    @property
    def rate_of_dense(self) -> float:
        """The learning rate of the dense layers after the warm-up."""
        return self.lr if self.dense_lr is None else self.dense_lr

    @property
    def decay_of_dense(self) -> float:
        """The weight decay of the dense layers."""
        return self.weight_decay if self.dense_weight_decay is None else self.dense_weight_decay

    def initial_sum(self, optimizer: str) -> float:
        """What the sums of squared gradients of one of `INITIAL_SUMS` start with."""
        default = INITIAL_SUMS[optimizer]
        return default if self.initial_accumulator is None else self.initial_accumulator

    @property
    def beyond_mlperf(self) -> dict[str, Any]:
        """The flags, and their values, with which a training is not that of MLPerf's dlrm."""
        plain = OptimizerConfig()
        values = {name: getattr(self, name) for name in BEYOND_MLPERF}
        return {name: value for name, value in values.items() if value != getattr(plain, name)}

    def schedule(self, global_batch_size: int) -> Schedule:
        """The learning rate of every step; parts that are not set scale with the global batch.

        Raises:
            ValueError: The parts do not fit together.
        """
        scaled = scaled_steps(global_batch_size)

        def given(value: Optional[int], part: str) -> int:
            return scaled[part] if value is None else value

        warmup = given(self.warmup_steps, "warmup")
        constant = self.lr_schedule == "constant"
        return Schedule(
            self.lr,
            warmup,
            warmup if constant else given(self.decay_start_step, "decay_start"),
            given(self.decay_steps, "decay"),
            warmup_factor=self.warmup_factor,
            decay_power=self.decay_power,
            end=self.decay_end_lr,
            decay=self.lr_schedule,
            decay_ratio=self.decay_ratio,
        )
