"""A model of bags and cross layers, trained, exported, scored and served by real processes."""

from __future__ import annotations

import concurrent.futures
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from dlrm.checkpoint.directory import finished
from dlrm.data import open_split
from serving.__main__ import main
from serving.artifact import read_artifact
from serving.scorer import Scorer
from serving.triton.client import ScoringClient
from serving.triton.client import main as client
from tests.support.bag_data import random_bags, write_bags
from tests.support.processes import run
from tests.support.servers import ServeCommand

SEED, SIZES, TRAINING, TEST = 167, (400, 30, 5), 768, 300
COLUMNS = 5 + 7 + 1  # of up to five ids, of up to seven, and of one
FLAGS = [
    *("--global_batch_size=48", "--embedding_dim=8", "--bottom_mlp=16,8", "--top_mlp=16,1"),
    *("--interaction=dcnv2", "--cross_layers=2", "--cross_rank=12", "--optimizer=adagrad"),
    *("--lr=0.3", "--warmup_steps=0", "--auc_target=1", "--eval_in_last", "--epochs=3"),
]


class Trained:
    """Data, whose tables hold weighted means, sums and one id; and a checkpoint trained on it."""

    def __init__(self, folder: Path) -> None:
        print("seed", SEED)
        self.data, self.folder = folder / "data", folder
        rng = np.random.default_rng(SEED)
        effects = rng.normal(size=SIZES[1])
        for part, samples in (("train", TRAINING), ("test", TEST)):
            bags = [
                random_bags(rng, 0, samples, SIZES[0], pooling="mean", weights=True),
                random_bags(rng, 1, samples, SIZES[1], longest=7),
            ]
            single = rng.integers(0, SIZES[2], (samples, 1)).astype("<i4")
            dense = rng.random((samples, 2)).astype("<f4")
            logits = np.array([effects[ids].sum() for ids in bags[1].bags])
            labels = (rng.logistic(size=samples) < logits).astype("<i4")
            write_bags(self.data / part, labels, dense, single, SIZES, bags, dense_log=False)
        checkpoints = folder / "checkpoints"
        self.flags = [f"--data_dir={self.data}", f"--checkpoint_dir={checkpoints}", *FLAGS]
        words = [sys.executable, "main.py", *self.flags, f"--run_dir={folder / 'run'}"]
        ended = run(words, time_limit=180)
        assert ended.code == 0, ended.output
        self.checkpoint = finished(checkpoints)[-1]
        self.artifact = folder / "artifact"
        words = ["export", str(self.checkpoint), str(self.artifact)]
        assert main([*words, f"--data={self.data / 'test'}"]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def test_the_artifact_scores_as_the_trainer(trained: Trained) -> None:
    """The command fails where a logit differs by more than 1e-5."""
    sizes = ["--inference_benchmark_batch_sizes=1,300", "--inference_benchmark_steps=3"]
    words = [sys.executable, "main.py", "--mode=inference_benchmark", *trained.flags, *sizes]
    ended = run(words, time_limit=180)
    assert ended.code == 0, ended.output
    assert len(re.findall("largest difference of a logit", ended.output)) == 2
    assert len(re.findall(r"^ *300  (TensorFlow|SavedModel|scorer) ", ended.output, re.M)) == 3


def test_every_command_takes_the_model(trained: Trained, capsys: pytest.CaptureFixture) -> None:
    """Counts, calibration, small rows and layers; their AUC is that of training's evaluation."""
    train, test = str(trained.data / "train"), str(trained.data / "test")
    counts, ranges = str(trained.folder / "counts"), str(trained.folder / "ranges.json")
    assert main(["count", train, counts]) == 0
    found = re.search(r"([\d,]+) uses of", capsys.readouterr().out)
    assert found
    source = open_split(trained.data / "train", per_category=False)
    assert int(found[1].replace(",", "")) == len(source.read(0, TRAINING)[1].ids)
    assert main(["calibrate", str(trained.checkpoint), train, ranges]) == 0
    small = str(trained.folder / "small")
    words = ["--tables=int8_rows", "--dense=int8", f"--calibration={ranges}", f"--data={test}"]
    words += [f"--row_frequencies={counts}", "--no_saved_model"]
    assert main(["export", str(trained.checkpoint), small, *words]) == 0
    for artifact in (str(trained.artifact), small):
        assert main(["verify", artifact]) == 0
        assert main(["info", artifact]) == 0
        assert "bags: up to 5, 7, 0 ids" in capsys.readouterr().out
        assert main(["evaluate", artifact, test]) == 0
        printed = capsys.readouterr().out
        of_model, own = (
            float(found) for found in re.findall(r"(?:model|artifact) +(0\.\d+) ", printed)
        )
        events = (trained.folder / "run" / "events.jsonl").read_text().splitlines()
        auc = [json.loads(line)["auc"] for line in events if '"evaluation"' in line][-1]
        assert of_model == pytest.approx(auc, abs=2e-4)
        assert own == pytest.approx(auc, abs=5e-3)
        assert auc > 0.6


def test_signatures_refuse_bad_bags(trained: Trained) -> None:
    loaded = tf.saved_model.load(str(trained.artifact / "saved_model"))
    score = loaded.signatures["serving_default"]
    source = open_split(trained.data / "test", per_category=False)
    dense, bags, _ = source.read(0, 20)
    with Scorer.open(trained.artifact) as scorer:
        ids, weights = scorer.columns.lay_out(bags)
        expected = scorer.score(dense, bags)
    assert weights is not None
    assert set(loaded.signatures) == {"serving_default"}

    def answer(ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
        given = {"dense": dense, "ids": ids, "weights": weights}
        return score(**{name: tf.constant(value) for name, value in given.items()})["logits"]

    np.testing.assert_allclose(answer(ids, weights), expected, rtol=1e-5, atol=1e-5)
    for place, value, message in (
        ((2, 12), -1, r"sample 2, table 2: expected an id in \[0, 5\), found -1"),
        ((3, 6), 30, r"sample 3, table 1: expected an id in \[0, 30\), found 30"),
    ):
        bad = ids.copy()
        bad[place] = value
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            answer(bad, weights)
    infinite = weights.copy()
    infinite[4, 12] = np.inf
    with pytest.raises(tf.errors.InvalidArgumentError, match="sample 4, table 2: expected finite"):
        answer(ids, infinite)


@pytest.mark.one_profile
@pytest.mark.skipif(find_spec("pytriton") is None, reason="needs Triton's server")
def test_a_server_answers_its_official_client(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = open_split(trained.data / "test", per_category=False)
    dense, bags, _ = source.read(0, TEST)
    with Scorer.open(trained.artifact) as scorer:
        columns, expected = scorer.columns.lay_out(bags), scorer.score(dense, bags)
    flags = ["--max_queue_delay_us=2000", "--max_batch_size=64"]

    with ServeCommand(tmp_path, trained.artifact, *flags) as server:

        def inputs(start: int, stop: int) -> dict[str, np.ndarray]:
            rows = slice(start, stop)
            return {"dense": dense[rows], **columns.rows(rows)._asdict()}

        def ask(worker: int) -> None:
            """Requests of other sizes than the others', with a bad one in the same batches."""
            protocol = ("http", "grpc")[worker % 2]
            with ScoringClient(getattr(server, protocol), protocol) as connection:
                for start in range(worker, TEST - 9, 17):
                    stop = start + 1 + worker
                    given = inputs(start, stop)
                    if worker == 5:
                        given["ids"] = given["ids"].copy()
                        given["ids"][-1, 7] = 30
                        with pytest.raises(ValueError, match=r"sample 5, table 1.*found 30"):
                            connection.outputs(given)["logit"]
                        continue
                    found = connection.outputs(given)["logit"]
                    np.testing.assert_allclose(found, expected[start:stop], atol=1e-5)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
        good = inputs(0, 4)
        for changes, message in (
            ({"ids": good["ids"][:, 1:]}, rf"shape for input 'ids'.*\[-1,{COLUMNS}\], got \[4,12"),
            ({"weights": good["weights"][1:]}, "batch size does not match"),
            ({"weights": good["weights"] * np.float32(np.nan)}, "expected finite weights"),
            ({"weights": None}, "weights: expected some, .* found none; give weights"),
            ({"ids": None}, "expected the inputs dense and ids, or .*found dense, weights"),
        ):
            given = {
                name: value for name, value in {**good, **changes}.items() if value is not None
            }
            for protocol in ("http", "grpc"):
                with ScoringClient(getattr(server, protocol), protocol) as connection:
                    with pytest.raises(ValueError, match=message):
                        connection.outputs(given)
                    found = connection.outputs(good)["logit"]
                    np.testing.assert_allclose(found, expected[:4], atol=1e-5)
        words = [f"--data={trained.data / 'test'}", "--batch_size=7", "--samples=50"]
        words += [f"--url={server.http}", f"--artifact={trained.artifact}"]
        assert client(words) == 0
        assert "50 of 50 are the scorer's bit for bit" in capsys.readouterr().out


@pytest.mark.one_profile
@pytest.mark.skipif(find_spec("mlperf_loadgen") is None, reason="needs MLPerf's LoadGen")
def test_loadgen_scores_every_sample(trained: Trained, tmp_path: Path) -> None:
    words = ["--mode=AccuracyOnly", "--samples_to_aggregate_fix=3", f"--output={tmp_path}"]
    words += [f"--artifact={trained.artifact}", f"--data={trained.data / 'test'}"]
    command = [sys.executable, "-m", "serving", "loadgen", *words]
    ended = run([*command, f"--reference={trained.artifact}"], time_limit=60)
    assert ended.code == 0, ended.output
    assert "99.9 %      held" in ended.output
    assert f"pairs       {TEST}" in ended.output
    assert read_artifact(trained.artifact).model.interaction == "dcnv2"
