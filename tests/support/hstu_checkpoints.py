"""Streaming data of a few users, and checkpoints of models that nobody trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import ModelShape
from dlrm_v3.config import HstuConfig
from dlrm_v3.data.stream import RequestStream, open_stream
from dlrm_v3.generate.__main__ import main as generate
from tests.support import hstu_batches
from tests.support.checkpoints import write_checkpoint

MODEL = HstuConfig(
    width=16,
    layers=2,
    heads=2,
    attention_dim=8,
    value_dim=8,
    hidden=12,
    max_history=40,
    min_history_for_user=5,
    position_buckets=32,
    time_buckets=16,
)


def write_stream(folder: Path, *flags: str) -> RequestStream:
    """Writes a stream of 60 users; flags change its settings."""
    small = ("--users=60", "--items=1200", "--categories=8", "--shards=2", "--written_shards=2")
    few = ("--timestamps=8", "--train_timestamps=6", "--inference_candidates=24")
    assert generate([str(folder), "--preset=tiny", *small, *few, "--candidates=6", *flags]) == 0
    return open_stream(folder)


def write_hstu(
    folder: Path, stream: RequestStream, model: HstuConfig = MODEL, *, ranks: int = 1, **more: Any
) -> tuple[list[NDArray[np.float32]], Path]:
    """Writes a checkpoint of random rows and of the weights that a model begins with.

    Args:
        folder: The folder to make.
        stream: The data.
        model: The shape of the model.
        ranks: Number of ranks that wrote it.
        **more: Passed on to `write_checkpoint`.

    Returns:
        The rows of items, categories and users, and the folder.
    """
    from dlrm_v3.model.hstu import build_model

    config = stream.config
    sizes = (config.items, config.categories, config.users)
    rows = np.random.default_rng(5).uniform(-1, 1, (sum(sizes), model.width)).astype(np.float32)
    length = 1 + model.max_history + config.candidates
    built = build_model(model, max_length=length, seed=3, dtype="float32", fused=False, xla=False)
    dense = {name: weight.numpy() for name, weight in hstu_batches.weights(built).items()}
    dense["adam.first.head"] = np.zeros(3, np.float32)  # what an optimizer keeps there
    settings = {**dataclasses.asdict(model), "max_length": length}
    defaults: dict[str, Any] = {"settings": settings, "data": {"stream": stream.fingerprint}}
    shape = ModelShape(None, sizes, model.width, None, None, architecture="HSTU")
    write_checkpoint(folder, shape, rows, dense, ranks=ranks, **{**defaults, **more})
    return np.split(rows, np.cumsum(sizes)[:-1]), folder
