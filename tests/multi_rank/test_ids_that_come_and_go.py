"""Training on ids that come and go, by real processes: resumed, and moved to other ranks."""

from __future__ import annotations

import re
import sys

import numpy as np
import polars as pl
import pytest

from dlrm.checkpoint.directory import finished
from tests.support.jobs import on_ranks, weights
from tests.support.processes import run
from tests.support.tiny_data import write_split

# .ci/run says what is left out of the other profile.
pytestmark = pytest.mark.one_profile

SEED, SIZES, STEPS, GLOBAL_BATCH = 211, (2**31 - 1, 400, 2**31 - 1), 14, 48
AUC = re.compile(r"AUC: (\S+?),? ")
SERVED_AUC = re.compile(r"^this artifact +(\S+)", re.MULTILINE)
FLAGS = [
    f"--global_batch_size={GLOBAL_BATCH}",
    "--embedding_dim=8",
    "--bottom_mlp=16,8",
    "--top_mlp=16,1",
    "--lr=0.1",
    "--lr_schedule=constant",
    "--warmup_steps=0",
    "--auc_target=1",
    "--eval_in_last",
    "--optimizer=rowwise_adagrad",
    "--embedding=dynamic",
    "--admit_after=2",
    "--evict_after=4",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ids of which a few are frequent, and others occur in some steps alone."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(SEED)
    for part, samples in (("train", STEPS * GLOBAL_BATCH), ("test", 100)):
        step = np.arange(samples)[:, None] // GLOBAL_BATCH
        ids = rng.integers(0, 60, (samples, 3)) + 20 * (step // 5)
        ids = ids * [35_000_000, 1, 12_345_678] % SIZES
        labels = rng.integers(0, 2, samples).astype("<i4")
        dense = rng.random((samples, 2)).astype("<f4")
        write_split(folder / part, labels, dense, ids.astype("<i4"), SIZES, dense_log=False)
    return folder


@pytest.fixture
def train(data, tmp_path):
    def trained(name, ranks, *flags):
        """Trains, or goes on; returns the newest checkpoint's tensors, rows in order of key."""
        folder = tmp_path / name
        command = [sys.executable, "main.py", f"--data_dir={data}", f"--checkpoint_dir={folder}"]
        ended = run(on_ranks(ranks, *command, *FLAGS, *flags), time_limit=120)
        assert ended.code == 0, ended.output
        if any(flag.startswith("--mode=") for flag in flags):
            return {}, ended.output
        found = weights(finished(folder)[-1])
        files = [f"tables-{rank:05d}-of-{ranks:05d}.safetensors" for rank in range(ranks)]
        tensors = {name: value for name, value in found.items() if not name.startswith("tables-")}
        rows = [len(found[f"{file} rows"]) for file in files]
        keys = [found[f"{file} keys"] for file in files]
        assert all((key % ranks == rank).all() for rank, key in enumerate(keys))
        for with_row, name in ((True, "own"), (False, "waiting")):
            part = [slice(0, n) if with_row else slice(n, None) for n in rows]
            joined = np.concatenate([key[p] for key, p in zip(keys, part)])
            order = np.argsort(joined)
            counts = [found[f"{file} counts"][p] for file, p in zip(files, part)]
            tensors[f"{name} keys"] = joined[order]
            tensors[f"{name} counts"] = np.concatenate(counts)[order]
            if with_row:
                for tensor in ("rows", "rowwise_adagrad.sum"):
                    values = [found[f"{file} {tensor}"] for file in files]
                    tensors[tensor] = np.concatenate(values)[order]
        for file in files:
            tensors["shared"] = found[f"{file} shared"]
            np.testing.assert_array_equal(tensors["shared"], found[f"{files[0]} shared"])
        return tensors, ended.output

    return trained


def living(tensors):
    """Without the keys that are forgotten already, whose memory is freed at some later step."""
    for name in ("own", "waiting"):
        alive = tensors[f"{name} counts"][:, 1] >= STEPS - 4
        of_name = [f"{name} keys", f"{name} counts"]
        of_name += ["rows", "rowwise_adagrad.sum"] if name == "own" else []
        for tensor in of_name:
            tensors[tensor] = tensors[tensor][alive]
    return tensors


def test_ranks_resume_and_reshard(train, data, tmp_path):
    print("seed", SEED)
    whole, output = train("whole", 1)
    assert "AUC" in output
    assert "bytes for each id that it keeps" in output
    _, scored = train("whole", 2, "--mode=test")
    assert AUC.findall(scored) == AUC.findall(output)[-1:]
    living(whole)
    assert len(whole["own keys"]) > 20
    assert len(whole["waiting keys"]) > 5
    half = f"--early_stop={STEPS // 2}"
    train("resumed", 1, half)
    resumed = living(train("resumed", 1)[0])
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    train("moved", 2, half, "--compress")
    moved = living(train("moved", 3)[0])
    for name, value in whole.items():
        np.testing.assert_allclose(moved[name], value, atol=2e-6, err_msg=name)

    exported = [sys.executable, "-m", "dlrm.checkpoint", "export", tmp_path / "moved"]
    ended = run([*exported, tmp_path / "out", "--format=parquet"], time_limit=60)
    assert ended.code == 0, ended.output
    tables = [pl.read_parquet(tmp_path / "out" / f"table_{t:03d}.parquet") for t in range(3)]
    offsets = np.cumsum([0, *SIZES[:2]])
    keys = np.concatenate([table["id"].to_numpy() + o for table, o in zip(tables, offsets)])
    rows = np.concatenate([table["vector"].to_numpy() for table in tables])
    kept = moved["own counts"][:, 1] >= STEPS + 1 - 4  # as an evaluation finds them
    np.testing.assert_array_equal(keys, moved["own keys"][kept])
    np.testing.assert_array_equal(rows, moved["rows"][kept])
    info = [sys.executable, "-m", "dlrm.checkpoint", "info", finished(tmp_path / "moved")[-1]]
    ended = run(info, time_limit=60)
    assert "tables: 3 of width 8, rows of the ids that occurred" in ended.output
    # What three ranks wrote is served; its AUC is that of the trainer's evaluation.
    serving = [sys.executable, "-m", "serving"]
    ended = run([*serving, "export", tmp_path / "moved", tmp_path / "served"], time_limit=60)
    assert ended.code == 0, ended.output
    ended = run([*serving, "evaluate", tmp_path / "served", data / "test"], time_limit=60)
    assert ended.code == 0, ended.output
    (auc,) = SERVED_AUC.findall(ended.output)
    assert float(auc) == pytest.approx(float(AUC.findall(output)[-1].rstrip(".")), abs=1e-3)


@pytest.mark.parametrize("admit_after", [2, 0])
def test_the_artifact_scores_as_the_trainer(train, admit_after):
    """The command fails where a logit of the scorer or SavedModel differs by more than 1e-5."""
    print("seed", SEED)
    flags = [f"--admit_after={admit_after}", "--lr=1"]
    tensors, _ = train("served", 1, *flags)
    assert len(tensors["shared"]) == (3 if admit_after else 0)
    forgotten = tensors["own counts"][:, 1] < STEPS + 1 - 4
    assert forgotten.any(), "rows that an evaluation no longer finds"
    sizes = ["--inference_benchmark_batch_sizes=1,100", "--inference_benchmark_steps=2"]
    _, output = train("served", 1, "--mode=inference_benchmark", *sizes, *flags)
    assert len(re.findall("largest difference of a logit", output)) == 2
