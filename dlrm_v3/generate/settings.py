"""Flags for the settings of a stream: a preset, and one flag for each setting to change in it."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from typing import Any

from dlrm_v3.config import PRESETS, StreamConfig


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds `--preset` and a flag for every setting."""
    parser.add_argument(
        "--preset", choices=list(PRESETS), required=True, help="settings to begin with"
    )
    for setting in fields(StreamConfig):
        kind = float if setting.name == "user_share" else int
        parser.add_argument(f"--{setting.name}", type=kind, help=_help(setting.name))


def stream_config(flags: dict[str, Any]) -> StreamConfig:
    """The settings that parsed flags ask for.

    A preset that writes all of its shards also does so when their number is changed.

    Raises:
        ValueError: A setting is out of its range.
    """
    preset = PRESETS[flags["preset"]].stream
    names = [setting.name for setting in fields(StreamConfig)]
    changed = {name: flags[name] for name in names if flags[name] is not None}
    if "shards" in changed and preset.written_shards == preset.shards:
        changed = {"written_shards": changed["shards"], **changed}
    try:
        return replace(preset, **changed)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def _help(name: str) -> str:
    """What the docstring of `StreamConfig` says of a setting."""
    entries = (StreamConfig.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
    text = " ".join(entries.partition(f" {name}: ")[2].split())
    return text.partition(". ")[0].rstrip(".") + " (default: the preset's)"
