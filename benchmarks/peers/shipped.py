"""The settings that users get: a preset, and the flags that `make train` adds to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from benchmarks.peers.case import TrainCase
from benchmarks.ranks import ROOT
from dlrm.config import SETTINGS, Config

# The defaults of main.py's flags are MLPerf's model.
PRESETS = {"demo": "demo", "kaggle": "kaggle"}
NEVER = 10**9  # steps


def preset_flags(shape: str) -> list[str]:
    """The flags in the preset of a shape; none if it is the default."""
    if shape not in PRESETS:
        return []
    lines = Path(ROOT, "presets", f"{PRESETS[shape]}.flags").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("--")]


def train_flags() -> list[str]:
    """The switches that `make train` adds to its preset, read from the Makefile."""
    recipe = re.search(r"^train:.*\n((?:\t.*\n)+)", Path(ROOT, "Makefile").read_text(), re.M)
    assert recipe
    command = recipe[1].partition(" -- ")[2]
    return re.findall(r"(?<=\s)--\w+(?=\s)", command)


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
    settings = settings_of([*preset_flags(case.shape), *train_flags()])
    config = Config.of(**{**settings, "data_dir": case.folder})
    assert config.model.bottom_mlp == tuple(case.bottom_mlp)
    assert config.model.top_mlp == tuple(case.top_mlp)
    return config.replace(
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
