"""Flags for the settings of a stream: a preset, and one flag for each setting to change in it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from dlrm_v3.config import PRESETS, StreamConfig
from dlrm_v3.flags import add_flags, given_values


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds `--preset` and a flag for every setting."""
    parser.add_argument(
        "--preset", choices=list(PRESETS), required=True, help="settings to begin with"
    )
    add_flags(parser, StreamConfig)


def stream_config(flags: dict[str, Any]) -> StreamConfig:
    """The settings that parsed flags ask for.

    A preset that writes all of its shards also does so when their number is changed.

    Raises:
        ValueError: A setting is out of its range.
    """
    preset = PRESETS[flags["preset"]].stream
    changed = given_values(StreamConfig, flags)
    if "shards" in changed and preset.written_shards == preset.shards:
        changed = {"written_shards": changed["shards"], **changed}
    try:
        return replace(preset, **changed)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
