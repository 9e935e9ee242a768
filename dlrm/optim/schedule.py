"""The learning rate of a step: warm-up, plateau, decay, end.

Plain arithmetic on step numbers, independent of training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# The MLPerf v0.7 reference schedule, in steps of 55296 samples.
REFERENCE_BATCH = 55296
REFERENCE_STEPS = {"warmup": 2750, "decay_start": 49315, "decay": 27772}

DECAYS = ("poly", "constant", "cosine", "step")

_MAX_WARMUP_FACTOR = 32  # begins closer to the full rate than float32 can tell


@dataclass(frozen=True)
class Schedule:
    """Learning rate by 0-based step.

    Attributes:
        base: The learning rate after the warm-up, which then stays for a while.
        warmup_steps: W, the length of the warm-up. The rate of step s < W is
            base * (1 - (W - s) / (W * 2^F)): by default, where F is 0, base * s / W.
        decay_start_step: D, the step at which the decay begins.
        decay_steps: K, the length of the decay. From step D to step D + K the rate is, by `decay`,
            poly: base * ((D + K - s) / K)^P, but not less than `end`;
            cosine: end + (base - end) * (1 + cos(pi * (s - D) / K)) / 2;
            and `end` from then on. With step, K is the time from one fall to the next: the rate is
            base * R^(1 + floor((s - D) / K)), but not less than `end`. With constant, it does not
            decay.
        warmup_factor: F, which says where the warm-up begins.
        decay_power: P, the power of the decay `poly`.
        end: The least rate of the decay.
        decay: One of `DECAYS`.
        decay_ratio: R, the ratio of two rates of the decay `step`, one after the other.
    """

    base: float
    warmup_steps: int
    decay_start_step: int
    decay_steps: int
    warmup_factor: int = 0
    decay_power: int = 2
    end: float = 0.0
    decay: str = "poly"
    decay_ratio: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= self.decay_start_step:
            raise ValueError(
                "expected 0 <= --warmup_steps <= --decay_start_step, found "
                f"{self.warmup_steps} and {self.decay_start_step}"
            )
        assert self.decay in DECAYS, self.decay
        least = 1 if self.decay == "step" else 0
        if self.decay_steps < least:
            raise ValueError(f"expected --decay_steps of {least} or more, found {self.decay_steps}")
        if not 0 < self.decay_ratio < 1:
            raise ValueError(f"expected --decay_ratio between 0 and 1, found {self.decay_ratio}")
        if not 0 <= self.warmup_factor <= _MAX_WARMUP_FACTOR:
            raise ValueError(
                f"expected --warmup_factor from 0 to {_MAX_WARMUP_FACTOR}, found "
                f"{self.warmup_factor}"
            )
        if self.decay_power < 1:
            raise ValueError(f"expected --decay_power of 1 or more, found {self.decay_power}")
        if not 0 <= self.end <= self.base:
            raise ValueError(
                f"expected --decay_end_lr from 0 to {self.base:g} (--lr), found {self.end:g}"
            )

    def learning_rate(self, step: int) -> float:
        """The learning rate of the 0-based `step`."""
        if step < self.warmup_steps:
            length = self.warmup_steps * 2**self.warmup_factor
            return self.base * (length - self.warmup_steps + step) / length
        if step < self.decay_start_step or self.decay == "constant":
            return self.base
        if self.decay == "step":
            falls = 1 + (step - self.decay_start_step) // self.decay_steps
            return max(self.base * self.decay_ratio**falls, self.end)
        left = self.decay_start_step + self.decay_steps - step
        if left <= 0:
            return self.end
        if self.decay == "cosine":
            share = (1 - math.cos(math.pi * left / self.decay_steps)) / 2
            return self.end + (self.base - self.end) * share
        return max(self.base * (left / self.decay_steps) ** self.decay_power, self.end)


def scaled_steps(global_batch: int) -> dict[str, int]:
    """The reference schedule for another global batch: the same number of samples in each part."""
    return {
        part: int(steps * REFERENCE_BATCH / global_batch) for part, steps in REFERENCE_STEPS.items()
    }
