"""Artifacts to open with the scorer, and samples to ask it, for the tests of `serving.scorer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import scorer_library
from serving.scorer import Scorer
from tests.support.artifacts import ArtifactReference

SEED = 20261126
# Vectors of one and a half registers; layers of a few units and of several panels.
SHAPE: dict[str, Any] = {
    "vocab_sizes": (100, 3, 1, 50, 7),
    "width": 24,
    "num_dense": 13,
    "bottom": (70, 7, 24),
    "top": (150, 33, 9, 1),
}


def opened(folder: Path, **settings: Any) -> Scorer:
    level = settings.get("level")
    if level is not None and level not in scorer_library.levels():
        pytest.skip(f"this CPU has no {level}")
    return Scorer.open(folder, **{"threads": 2, **settings})


def samples(reference: ArtifactReference, batch: int, seed: int = SEED) -> tuple[Any, Any]:
    """Random dense features and ids."""
    print("samples of seed", seed)
    generator = np.random.default_rng(seed)
    dense = generator.standard_normal((batch, len(reference.bottom[0].kernel)), np.float32)
    ids = [generator.integers(0, len(table), batch, np.int32) for table in reference.tables]
    return dense, np.stack(ids, axis=1)
