"""The learning rate of a step: warm-up, plateau, quadratic decay, end.

Plain arithmetic on step numbers, independent of training.
"""

from __future__ import annotations

from dataclasses import dataclass

# The MLPerf v0.7 reference schedule, in steps of 55296 samples.
REFERENCE_BATCH = 55296
REFERENCE_STEPS = {"warmup": 2750, "decay_start": 49315, "decay": 27772}


@dataclass(frozen=True)
class Schedule:
    """Learning rate by 0-based step.

    Attributes:
        base: The learning rate after the warm-up, which then stays for a while.
        warmup_steps: W, the length of the warm-up. The rate of step s < W is base * s / W.
        decay_start_step: D, the step at which the decay begins.
        decay_steps: K, the length of the decay. The rate is base * ((D + K - s) / K)^2 from step D
            to step D + K, and 0 from then on.
    """

    base: float
    warmup_steps: int
    decay_start_step: int
    decay_steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= self.decay_start_step:
            raise ValueError(
                "expected 0 <= --warmup_steps <= --decay_start_step, found "
                f"{self.warmup_steps} and {self.decay_start_step}"
            )
        if self.decay_steps < 0:
            raise ValueError(f"expected --decay_steps of 0 or more, found {self.decay_steps}")

    def learning_rate(self, step: int) -> float:
        """The learning rate of the 0-based `step`."""
        if step < self.warmup_steps:
            return self.base * step / self.warmup_steps
        if step < self.decay_start_step:
            return self.base
        left = self.decay_start_step + self.decay_steps - step
        if left <= 0:
            return 0.0
        return self.base * (left / self.decay_steps) ** 2


def scaled_steps(global_batch: int) -> dict[str, int]:
    """The reference schedule for another global batch: the same number of samples in each part."""
    return {
        part: int(steps * REFERENCE_BATCH / global_batch) for part, steps in REFERENCE_STEPS.items()
    }
