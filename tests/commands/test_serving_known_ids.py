"""A model whose ids have rows only where they occurred, served and measured by real processes."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from serving.scorer import Scorer
from serving.triton.client import ScoringClient
from tests.support.dynamic_model import LARGEST, SAMPLES, DynamicModel
from tests.support.processes import run
from tests.support.servers import ServeCommand

pytestmark = pytest.mark.one_profile


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DynamicModel:
    return DynamicModel(tmp_path_factory.mktemp("model"), shares=False)


@pytest.fixture(scope="module")
def artifact(model: DynamicModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.export(tmp_path_factory.mktemp("served") / "artifact", "--no_saved_model")


@pytest.mark.skipif(find_spec("pytriton") is None, reason="needs Triton's server")
def test_a_server_answers_for_any_id(model: DynamicModel, artifact: Path, tmp_path: Path) -> None:
    """Known ones, forgotten ones and others, with the largest; packed ids too."""
    expected = model.score(artifact)
    with Scorer.open(artifact) as scorer:
        words = scorer.artifact.packing.pack(model.samples)
    with ServeCommand(tmp_path, artifact, "--max_batch_size=128") as server:
        for protocol in ("http", "grpc"):
            with ScoringClient(getattr(server, protocol), protocol) as connection:
                for part in (slice(0, 1), slice(1, 60), slice(200, SAMPLES)):
                    for name, ids in (("ids", model.samples), ("packed_ids", words)):
                        given = {"dense": model.dense[part], name: ids[part]}
                        found = connection.outputs(given)["logit"]
                        np.testing.assert_array_equal(np.ravel(found), expected[part])
                bad = model.samples[:3].copy()
                bad[2, 3] = LARGEST
                with pytest.raises(ValueError, match=f"sample 2, table 3: .* found {LARGEST}"):
                    connection.outputs({"dense": model.dense[:3], "ids": bad})


@pytest.mark.skipif(find_spec("mlperf_loadgen") is None, reason="needs MLPerf's LoadGen")
def test_loadgen_scores_every_sample(model: DynamicModel, artifact: Path, tmp_path: Path) -> None:
    words = ["--mode=AccuracyOnly", "--samples_to_aggregate_fix=3", f"--output={tmp_path}"]
    words += [f"--artifact={artifact}", f"--data={model.data}", f"--reference={artifact}"]
    ended = run([sys.executable, "-m", "serving", "loadgen", *words], time_limit=60)
    assert ended.code == 0, ended.output
    assert f"pairs       {SAMPLES}" in ended.output
    assert "99.9 %      held" in ended.output
