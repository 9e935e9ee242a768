"""The settings that users get: those of a preset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from benchmarks.peers.case import TrainCase
from benchmarks.ranks import ROOT
from dlrm.config import SETTINGS, Config

# The preset of each shape of `benchmarks.shapes`.
PRESETS = {"demo": "demo", "kaggle": "kaggle", "mlperf_mlps": "terabyte"}
NEVER = 10**9  # steps


def preset_flags(shape: str) -> list[str]:
    """The flags in the preset of a shape."""
    lines = Path(ROOT, "presets", f"{PRESETS[shape]}.flags").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("--")]


def settings_of(flags: Iterable[str]) -> dict[str, Any]:
    """The settings that flags such as `--lr=2`, `--compress` and `--noxla` stand for."""
    kinds = {setting.name: setting.type for setting in SETTINGS}
    found: dict[str, Any] = {}
    for flag in flags:
        name, equals, value = flag.lstrip("-").partition("=")
        if not equals:
            found.update({name: True} if name in kinds else {name.removeprefix("no"): False})
        elif kinds[name] == tuple[int, ...]:
            found[name] = tuple(map(int, value.split(",")))
        elif kinds[name] in (int, Optional[int]):
            found[name] = int(value)
        elif kinds[name] in (float, Optional[float]):
            found[name] = float(value)
        else:
            found[name] = value
    return found


def shipped_config(case: TrainCase) -> Config:
    """The configuration of a run with the shape's preset; rate, batch and length are the case's."""
    settings = settings_of(preset_flags(case.shape))
    config = Config.of(**{**settings, "data_dir": case.folder})
    assert config.model.bottom_mlp == tuple(case.bottom_mlp)
    assert config.model.top_mlp == tuple(case.top_mlp)
    return config.replace(
        xla=False,  # for GPUs
        global_batch_size=case.batch,
        lr=case.lr,
        warmup_steps=0,
        decay_start_step=NEVER,
        decay_steps=0,
        epochs=1,
        eval_interval=NEVER,
        checkpoint_interval=NEVER,
        log_interval=1,
    )
