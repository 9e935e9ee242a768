"""A small artifact and the server that answers for it, from a repository of its own."""

from __future__ import annotations

import json
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from serving.scorer import Scorer
from serving.triton.client import ScoringClient
from tests.support.artifacts import write_artifact
from tests.support.servers import ServeCommand

MAX_BATCH = 512
VOCAB_SIZES, NUM_DENSE = (7, 3, 11), 3
QUICK = 20.0  # seconds for a command that starts no server
NEEDS_TRITON = [
    pytest.mark.one_profile,
    pytest.mark.skipif(find_spec("pytriton") is None, reason="needs Triton's server"),
]


class Setting:
    """An artifact, its reference and the server that has it in a repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifact = folder / "artifact"
        self.reference = write_artifact(
            self.artifact,
            VOCAB_SIZES,
            num_dense=NUM_DENSE,
            row_order=True,
            dictionary=True,
            seed=1,
        )
        self.repository = folder / "repository"
        self.server = ServeCommand(
            folder,
            self.artifact,
            f"--repository={self.repository}",
            f"--max_batch_size={MAX_BATCH}",
            "--max_queue_delay_us=2000",
            "--hot_share=0.5",
        )

    def scored(self, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The logits of the scorer."""
        with Scorer.open(self.artifact) as scorer:
            return scorer.score(dense, ids)


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((count, NUM_DENSE)).astype(np.float32)
    return dense, rng.integers(0, VOCAB_SIZES, (count, len(VOCAB_SIZES)), np.int32)


def client_of(server: ServeCommand, protocol: str, model: str = "dlrm") -> ScoringClient:
    return ScoringClient(getattr(server, protocol), protocol, model)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read().decode()


def wait_for_state(setting: Setting, model: str, version: int, expected: str) -> None:
    """Waits until the server says of a version that it is in a state, or why it is not."""
    end = time.monotonic() + QUICK
    while True:
        url = f"http://{setting.server.http}/v2/repository/index"
        with urllib.request.urlopen(urllib.request.Request(url, data=b""), timeout=10) as reply:
            entries = json.load(reply)
        states = [
            f"{entry['state']} {entry.get('reason', '')}"
            for entry in entries
            if (entry["name"], entry.get("version")) == (model, str(version))
        ]
        if any(expected in state for state in states):
            return
        assert time.monotonic() < end, states
        time.sleep(0.05)
