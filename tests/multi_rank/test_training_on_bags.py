"""Training on bags of ids by real processes: one, two and three ranks, resumed and resharded."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dlrm.checkpoint.directory import finished
from tests.support.bag_data import random_bags, write_bags
from tests.support.jobs import on_ranks, weights
from tests.support.processes import run

# .ci/run says what is left out of the other profile.
pytestmark = pytest.mark.one_profile

SEED, SIZES, STEPS, GLOBAL_BATCH = 163, (400, 30, 5), 8, 48
FLAGS = [
    f"--global_batch_size={GLOBAL_BATCH}",
    "--embedding_dim=8",
    "--bottom_mlp=16,8",
    "--top_mlp=16,1",
    "--lr=0.5",
    "--warmup_steps=0",
    "--auc_target=1",
    "--eval_in_last",
    "--optimizer=adagrad",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Training and test data: weighted means in table 0, sums in table 1, one id in table 2."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(SEED)
    for part, samples in (("train", STEPS * GLOBAL_BATCH), ("test", 100)):
        bags = [
            random_bags(rng, 0, samples, SIZES[0], pooling="mean", weights=True),
            random_bags(rng, 1, samples, SIZES[1], longest=7),
        ]
        single = rng.integers(0, SIZES[2], (samples, 1)).astype("<i4")
        labels = rng.integers(0, 2, samples).astype("<i4")
        dense = rng.random((samples, 2)).astype("<f4")
        write_bags(folder / part, labels, dense, single, SIZES, bags, dense_log=False)
    return folder


@pytest.fixture
def train(data, tmp_path):
    def trained(name, ranks, *flags):
        """Trains, or goes on; returns the newest checkpoint's tensors, rows in order of key."""
        folder = tmp_path / name
        command = [sys.executable, "main.py", f"--data_dir={data}", f"--checkpoint_dir={folder}"]
        ended = run(on_ranks(ranks, *command, *FLAGS, *flags), time_limit=120)
        assert ended.code == 0, ended.output
        found = weights(finished(folder)[-1])
        shares = {key: value for key, value in found.items() if key.startswith("tables-")}
        tensors = {key: value for key, value in found.items() if key not in shares}
        for tensor in {key.split()[1] for key in shares}:
            parts = [
                shares[f"tables-{r:05d}-of-{ranks:05d}.safetensors {tensor}"] for r in range(ranks)
            ]
            tensors[tensor] = np.empty((sum(SIZES), parts[0].shape[1]), np.float32)
            for rank, part in enumerate(parts):
                tensors[tensor][rank::ranks] = part
        return tensors, ended.output

    return trained


def test_ranks_resume_and_reshard(train):
    whole, output = train("whole", 1)
    assert "AUC" in output
    half = f"--early_stop={STEPS // 2}"
    train("resumed", 1, half)
    resumed, _ = train("resumed", 1)
    assert whole.keys() == resumed.keys()
    assert any("adagrad" in name for name in whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    # Half on two ranks, which send distinct keys; the rest on three, which pool at the owners.
    train("moved", 2, half, "--compress")
    moved, _ = train("moved", 3)
    for name, value in whole.items():
        np.testing.assert_allclose(moved[name], value, atol=2e-6, err_msg=name)
