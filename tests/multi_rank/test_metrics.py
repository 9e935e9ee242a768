"""What Prometheus sees of two real ranks, one of which hangs for a while, and what they sent."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tests.support.jobs import (
    EPOCH_STEPS,
    GLOBAL_BATCH,
    NUM_DENSE,
    STEPS,
    VOCAB_SIZES,
    Job,
    flags,
    on_ranks,
    write_data,
)

AGE = "dlrm_rank_heartbeat_age_seconds"
VECTOR_BYTES, KEY_BYTES = 4 * 16, 4


def read(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = re.findall(r"^(dlrm_\w+(?:\{.*?\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def sent_for_the_tables() -> list[int]:
    """Bytes that rank 0 of two sends for the tables in each step of an epoch, counted anew."""
    samples = EPOCH_STEPS * GLOBAL_BATCH + 10
    generator = np.random.default_rng(samples)  # draws as `write_data` does
    generator.integers(0, 2, samples)
    generator.random([samples, NUM_DENSE])
    ids = generator.integers(0, VOCAB_SIZES, [samples, 3])
    keys = ids + np.cumsum([0, *VOCAB_SIZES[:-1]])
    owner = keys[: EPOCH_STEPS * GLOBAL_BATCH].reshape(EPOCH_STEPS, 2, -1) % 2
    asks = (owner[:, 0] == 1).sum(axis=1)  # rank 0's keys of rows that rank 1 owns
    answers = (owner[:, 1] == 0).sum(axis=1)  # and the other way round
    sent = asks * (KEY_BYTES + VECTOR_BYTES) + answers * VECTOR_BYTES
    return [int(count) for count in sent]


@pytest.mark.slow
def test_a_rank_that_hangs_is_seen_and_the_bytes_are_those_sent(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    settings = {"data_dir": tmp_path / "data", "run_dir": tmp_path / "run", "metrics_port": 0}
    command = on_ranks(2, "python3", "main.py", *flags(settings))
    with Job(tmp_path / "out", command) as job:
        job.wait_for_step(5)
        job.send(1, signal.SIGSTOP)
        port = int(re.findall(r"metrics: http://.*:(\d+)/metrics", job.output)[0])
        stopped = time.monotonic()
        while (now := read(port))[f'{AGE}{{rank="1"}}'] < 5:
            assert time.monotonic() - stopped < 60
            time.sleep(0.2)
        assert now[f'{AGE}{{rank="0"}}'] < 5
        assert now['dlrm_rank_progress_total{rank="0"}'] >= 5
        assert 5 <= now["dlrm_steps_total"] < STEPS
        assert now["dlrm_samples_total"] == now["dlrm_steps_total"] * GLOBAL_BATCH
        job.send(1, signal.SIGCONT)
        assert job.end().code == 0
    events = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    exchanged = [event["exchanged_bytes"] for event in events if event["event"] == "step"]
    assert len(exchanged) == STEPS
    tables = np.tile(sent_for_the_tables(), STEPS // EPOCH_STEPS)
    dense = np.array(exchanged) - tables
    # What is left is the all-reduce, which is the same in every step: the weights, and a little.
    weights = (NUM_DENSE + 1) * 32 + (32 + 1) * 16
    assert set(dense) == {dense[0]}
    assert dense[0] > 4 * weights
