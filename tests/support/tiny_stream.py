"""Streaming data of a few users, for tests that train on it."""

from __future__ import annotations

from pathlib import Path

from dlrm_v3.generate.__main__ import main

SETTINGS = {
    "users": 96,
    "items": 640,
    "categories": 16,
    "timestamps": 6,
    "train_timestamps": 4,
    "events_per_item": 9,
    "candidates": 4,
    "inference_candidates": 8,
    "shards": 2,
    "written_shards": 2,
}


def write_stream(folder: Path, **change: int) -> Path:
    """Generates the data into a folder; returns it."""
    flags = [f"--{name}={value}" for name, value in {**SETTINGS, **change}.items()]
    assert main(["--preset=tiny", *flags, str(folder)]) == 0
    return folder
