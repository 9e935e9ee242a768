"""The settings of a run: one frozen dataclass per section, one field for every flag of `main.py`.

A field carries its help text; `main.py` makes the flags from the fields, and nothing below it reads
a flag. Flags, events and checkpoints see the settings flat, by the flags' names; code takes the
section it needs. The checks here need settings alone, not data, devices or ranks.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dlrm.config.data import DataConfig, SyntheticConfig
from dlrm.config.mlperf import MlperfConfig
from dlrm.config.model import EmbeddingConfig, ModelConfig
from dlrm.config.optimizer import OptimizerConfig
from dlrm.config.profile import ProfileConfig
from dlrm.config.report import ReportConfig, TrackingConfig
from dlrm.config.run import CheckpointConfig, EvaluationConfig, RunConfig
from dlrm.config.setting import Setting

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EmbeddingConfig",
    "EvaluationConfig",
    "MlperfConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProfileConfig",
    "ReportConfig",
    "RunConfig",
    "SECTIONS",
    "SETTINGS",
    "Setting",
    "SyntheticConfig",
    "TrackingConfig",
]


@dataclass(frozen=True)
class Config:
    """All settings of a run, by section.

    Raises:
        ValueError: Settings make no sense or do not fit together; the message names the remedy.
    """

    run: RunConfig
    data: DataConfig
    synthetic: SyntheticConfig
    model: ModelConfig
    embedding: EmbeddingConfig
    optimizer: OptimizerConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    report: ReportConfig
    tracking: TrackingConfig
    profile: ProfileConfig
    mlperf: MlperfConfig

    def __post_init__(self) -> None:
        checkpoint = self.checkpoint
        named = bool(checkpoint.checkpoint_dir) or checkpoint.resume not in ("auto", "none")
        if self.run.mode == "test":
            named = named or checkpoint.append_day is not None
        if self.run.mode != "train" and not named:
            raise ValueError(
                f"--mode={self.run.mode}: no checkpoint named; set --checkpoint_dir=FOLDER or "
                "--resume=PATH"
            )
        warmup = self.report.benchmark_warmup_steps
        if 0 < self.run.early_stop <= warmup:
            raise ValueError(
                f"expected --benchmark_warmup_steps below --early_stop={self.run.early_stop}, "
                f"found {warmup}"
            )
        self.optimizer.schedule(self.data.global_batch_size)  # checked before anything is built
        self.profile.check(self.run.mode, self.report.run_dir, self.run.early_stop)
        self.mlperf.check(
            self.run.mode,
            self.data.verify_data,
            len(self.model.bottom_mlp),
            len(self.model.top_mlp),
            self.model.interaction,
            self.optimizer.beyond_mlperf,
        )

    @classmethod
    def of(cls, **settings: Any) -> Config:
        """Builds the sections from flat settings; those that are not given keep their defaults.

        Args:
            settings: Values by the flags' names.

        Raises:
            TypeError: There is no such setting.
            ValueError: As for `Config`.
        """
        unknown = settings.keys() - {setting.name for setting in SETTINGS}
        if unknown:
            raise TypeError(f"expected names of settings, found {', '.join(sorted(unknown))}")
        given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for setting in SETTINGS:
            if setting.name in settings:
                given[setting.section][setting.name] = settings[setting.name]
        return cls(**{section: SECTIONS[section](**given[section]) for section in SECTIONS})

    def flat(self) -> dict[str, Any]:
        """All settings by their flags' names, as events and checkpoints record them."""
        return {
            setting.name: getattr(getattr(self, setting.section), setting.name)
            for setting in SETTINGS
        }

    def replace(self, **settings: Any) -> Config:
        """A copy in which the given flat settings are changed."""
        return Config.of(**{**self.flat(), **settings})


def _settings() -> Iterator[Setting]:
    for section, kind in SECTIONS.items():
        types = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield Setting(section, field.name, types[field.name], field.default, **field.metadata)


SECTIONS: dict[str, Any] = typing.get_type_hints(Config)
SETTINGS: tuple[Setting, ...] = tuple(_settings())
