"""The section that says which steps are looked into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from dlrm.config.setting import flag


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps are looked into, and how."""

    profile: Optional[str] = flag(
        None,
        "FIRST:LAST, the steps that a profile in --run_dir shows, counted from 0 at the start of "
        "this run; every second of them is taken in parts",
        affects_training=False,
    )
    step_breakdown: bool = flag(
        False,
        "measure each part of a step, in one step of 250, and print and plot their shares at the "
        "end of the training",
        affects_training=False,
    )

    def __post_init__(self) -> None:
        _ = self.steps  # raises if --profile is malformed

    @property
    def steps(self) -> range:
        """The steps of `profile`; empty if none are asked for.

        Raises:
            ValueError: `profile` is no range of steps.
        """
        if self.profile is None:
            return range(0)
        first, colon, last = self.profile.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise ValueError(
                "expected --profile=FIRST:LAST of two numbers of steps, the second one greater, "
                f"such as 10:20, found {self.profile!r}"
            )
        return range(int(first), int(last))

    def check(self, mode: str, run_dir: str | None, early_stop: int) -> None:
        """Checks that what is asked for can be done in this run.

        Args:
            mode: What the run does.
            run_dir: Where its files go.
            early_stop: The steps after which it ends; below 1 for no such end.

        Raises:
            ValueError: It cannot; the message names the remedy.
        """
        asked = "profile" if self.profile else "step_breakdown" if self.step_breakdown else None
        if asked and mode != "train":
            raise ValueError(f"--{asked} looks into steps of training, found --mode={mode}")
        if self.profile and run_dir is None:
            raise ValueError("--profile writes into the folder of the run; set --run_dir=FOLDER")
        if 0 < early_stop < self.steps.stop:
            raise ValueError(
                f"expected --profile=FIRST:LAST that ends by step --early_stop={early_stop}, found "
                f"{self.profile}"
            )
