"""main.py --mode=inference_benchmark as a user runs it, and what it refuses."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset import open_data
from dlrm.config import Config
from dlrm.distributed.collective import Collective
from dlrm.train import run as program
from model import build_model
from serving import inference_benchmark as benchmark
from serving import scorer_library
from tests.support.processes import run
from tests.support.tiny_data import SETTINGS, write_random_split

SIZES, STEPS = (1, 100), 21  # a request of 100 samples takes some of the 70 test samples twice


class Checkpoint:
    """A trained checkpoint of tiny data, and the settings of runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder / "checkpoints", folder / "data"
        write_random_split(self.data / "train", 40)
        write_random_split(self.data / "test", 70)
        assert program.run(self.config(mode="train"), open_data, build_model)

    def settings(self, **settings: Any) -> dict[str, Any]:
        given = {"data_dir": os.fspath(self.data), "checkpoint_dir": os.fspath(self.folder)}
        return {**SETTINGS, "mode": "inference_benchmark", **given, **settings}

    def config(self, **settings: Any) -> Config:
        return Config.of(**self.settings(**settings))

    def flags(self, **settings: Any) -> list[str]:
        flags = []
        for name, value in self.settings(**settings).items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            flags.append(f"--{name}={text}")
        return flags


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("trained"))


def test_a_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    sizes = {"inference_benchmark_batch_sizes": SIZES, "inference_benchmark_steps": STEPS}
    log = tmp_path / "log.json"
    flags = checkpoint.flags(run_dir=tmp_path / "run", log_path=log, **sizes)
    ended = run(["python3", "main.py", *flags], time_limit=180)
    assert ended.code == 0, ended.output
    rows = re.findall(r"^ *(\d+)  (TensorFlow|SavedModel|scorer) +([\d. ,]+)$", ended.output, re.M)
    assert [(int(size), name) for size, name, _ in rows] == [
        (size, name) for size in SIZES for name in ("TensorFlow", "SavedModel", "scorer")
    ]
    assert re.search(r"^batch +variant +mean ms +p50 +p90 +p95 +p99 +p99.9 +samples/s$",
                     ended.output, re.M)  # fmt: skip
    # Nothing else is printed, such as TensorFlow's own notices; Matplotlib's first use may be slow.
    expected = (
        r"embedding: |resumed from |measuring |batch |--|largest |written: | *\d+  |Matplotlib is "
    )
    assert all(re.match(expected, line) for line in ended.output.splitlines()), ended.output

    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"inference_benchmark.json", "inference_benchmark.png"}
    content = json.loads((tmp_path / "run" / "inference_benchmark.json").read_text())
    assert content["step"] == 5
    assert content["largest_logit_difference"].keys() == {"SavedModel", "scorer"}
    assert max(content["largest_logit_difference"].values()) <= 1e-5
    for latency, (_, name, numbers) in zip(content["latencies"], rows):
        assert (latency["variant"], latency["requests"]) == (name, STEPS)
        assert 0 < latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
        shown = float(numbers.split()[0].replace(",", ""))
        assert shown == pytest.approx(latency["mean_ms"], rel=0.05, abs=0.001)
    summary = json.loads(log.read_text().splitlines()[-1].removeprefix("DLLL "))
    assert summary["step"] == []
    ours = [latency for latency in content["latencies"] if latency["variant"] == "TensorFlow"]
    expected_results = {
        f"mean_inference_latency_batch_{size}": pytest.approx(latency["mean_ms"] / 1e3, rel=1e-3)
        for size, latency in zip(SIZES, ours)
    }
    for size, latency in zip(SIZES, ours):
        speed = pytest.approx(latency["samples_per_second"], rel=1e-3)
        expected_results[f"mean_inference_throughput_batch_{size}"] = speed
    assert summary["data"] == expected_results


def refused(config: Config) -> str:
    """What `run_benchmark` says when it refuses; one line."""
    with pytest.raises((ValueError, OSError)) as caught:
        benchmark.run_benchmark(config, open_data, build_model)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = os.fspath(tmp_path / "empty")
    assert "no checkpoint in" in refused(checkpoint.config(checkpoint_dir=empty))
    assert "embedding_dim: checkpoint 4, run 8" in refused(
        checkpoint.config(embedding_dim=8, bottom_mlp=(8,))
    )
    with monkeypatch.context() as patch:
        two = Collective()
        patch.setattr(two, "size", 2)
        patch.setattr(benchmark, "connect", lambda timeout: two)
        assert "expected one rank, found 2" in refused(checkpoint.config())
    scorer_library.load.cache_clear()
    monkeypatch.setattr(scorer_library, "LIBRARY", tmp_path / "libscorer.so")
    assert "`make serving_core`" in refused(checkpoint.config())


def test_variants_that_disagree_are_an_error(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        benchmark,
        "saved_model",
        lambda folder: lambda request: np.ones(len(request.dense), np.float32),
    )
    config = checkpoint.config(inference_benchmark_batch_sizes=(2,), inference_benchmark_steps=1)
    assert "expected logits within 1e-05 of TensorFlow's" in refused(config)
