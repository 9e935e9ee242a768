"""`python3 -m dlrm_v3.benchmark` and `accuracy`: real tests of MLPerf's LoadGen, seconds each."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dlrm_v3.accuracy import main as accuracy
from dlrm_v3.benchmark.__main__ import main
from dlrm_v3.config import POSITIVE_RATING
from dlrm_v3.data.stream import open_stream
from dlrm_v3.quality import ranking_quality
from dlrm_v3.scorer import HstuScorer
from tests.support.hstu_checkpoints import MODEL, write_hstu, write_stream
from tests.support.processes import Ended, interrupted, run

pytest.importorskip("mlperf_loadgen")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a model that nobody trained, and a bound that holds while other tests use the cores."""
    folder = tmp_path_factory.mktemp("benchmark")
    stream = write_stream(folder / "tiny")
    write_hstu(folder / "checkpoints" / "step-0000000012", stream)
    (folder / "user.conf").write_text("*.Server.target_latency = 5000\n")
    return folder


def command(folder: Path, *flags: str) -> list[str]:
    """The command line; logs go to `folder/logs`."""
    paths = [f"--dataset-path-prefix={folder}", f"--model-path={folder / 'checkpoints'}"]
    logs = [f"--output={folder / 'logs'}", f"--user-conf={folder / 'user.conf'}"]
    return [sys.executable, "-m", "dlrm_v3.benchmark", "--dataset=tiny", *paths, *logs, *flags]


def benchmark(folder: Path, *flags: str) -> Ended:
    return run(command(folder, *flags), time_limit=120)


def test_offline_is_valid_and_has_a_trace(folder: Path) -> None:
    # More requests than any machine scores in this time, however busy it was in the warm-up.
    flags = ("--scenario-name=Offline", "--min-duration-ms=300", "--target-qps=4000")
    ended = benchmark(folder, *flags, "--output-trace")
    assert ended.code == 0, ended.output
    assert "Result is : VALID" in ended.output
    queries = int(1.1 * 0.3 * 4000)
    assert f"Offline, PerformanceOnly: {queries:,} queries" in ended.output
    assert re.search(rf"qps: {queries:,} requests in [\d,]+ batches of (9|10)\.\d", ended.output)
    for name in ("total", "queue", "batching", "sparse", "dense", "prediction"):
        assert re.search(rf"^{name} +(\d+\.\d\d +){{5}}\d+\.\d\d$", ended.output, re.MULTILINE)
    events = json.loads((folder / "logs" / "trace.json").read_text())["traceEvents"]
    threads = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    names = {(e["name"], threads[e["tid"]][:7]) for e in events if e["ph"] == "X"}
    scoring = {("prediction", "scoring"), ("sparse", "scoring"), ("dense", "scoring")}
    assert names == {("collate", "reading"), ("answer", "scoring"), *scoring}
    assert {e["name"] for e in events if e["ph"] == "b"} == {"queue", "ready", "total"}


def test_server_is_valid_after_a_warm_up_of_its_own(folder: Path) -> None:
    flags = ("--target-qps=60", "--num-queries=600", "--min-duration-ms=1000")
    ended = benchmark(folder, *flags, "--batchsize=8", "--warmup-ratio=0.5", "--sparse-quant")
    assert ended.code == 0, ended.output
    assert "Result is : VALID" in ended.output
    assert "tables in int8" in ended.output
    assert "600 requests in" in ended.output
    (queries,) = re.findall(r"warm-up: (\d+) queries by LoadGen", ended.output)
    warm_up = (folder / "logs" / "warmup" / "mlperf_log_summary.txt").read_text()
    assert re.search(rf"min_query_count : {queries}$", warm_up, re.MULTILINE)


@pytest.mark.parametrize("scenario", ["Server", "Offline"])
def test_the_accuracy_log_holds_the_predictions_of_each_request(
    folder: Path, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--compute-eval=true", f"--scenario-name={scenario}", "--warmup-ratio=0")
    ended = benchmark(folder, *flags, "--target-qps=500")
    assert ended.code == 0, ended.output
    stream = open_stream(folder / "tiny")
    scorer = HstuScorer.open(folder / "checkpoints" / "step-0000000012", stream, "float32")
    predictions, labels, sizes = [], [], []
    for timestamp in range(stream.config.train_timestamps, stream.config.timestamps):
        users = stream.users(timestamp, "inference")
        batch = stream.batch(users, timestamp, "inference", MODEL.max_history)
        predictions.append(scorer.score(batch))
        labels.append((batch.ratings >= POSITIVE_RATING).astype(np.float32))
        sizes.append(batch.targets)
    quality = ranking_quality(
        np.concatenate(predictions), np.concatenate(labels), np.concatenate(sizes)
    )
    log = folder / "logs" / "mlperf_log_accuracy.json"
    figures = f"NE={quality.normalised_entropy},AUC={quality.auc},GAUC={quality.gauc}"
    assert accuracy([f"--path={log}", f"--reference={figures}"]) == 0
    assert capsys.readouterr().out.count(": held") == 3
    for name, value in (("NE", quality.normalised_entropy), ("GAUC", quality.gauc)):
        (found,) = re.findall(rf"^{name} +([\d.]+) %$", ended.output, re.MULTILINE)
        assert float(found) == pytest.approx(100 * value, abs=1e-3)
    assert f"requests   {quality.requests} (0 duplicates skipped)" in ended.output
    strict = f"AUC={min(1.0, 1.01 * quality.auc)}"
    assert accuracy([f"--path={log}", f"--reference={strict}"]) == 1
    assert "AUC" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["", "--sparse-quant"])
def test_the_accuracy_is_that_of_the_trainers_own_evaluation(folder: Path, quant: str) -> None:
    """A model of few steps, evaluated by the trainer and by LoadGen's accuracy log."""
    checkpoints = folder / "trained"
    train = [sys.executable, "-m", "dlrm_v3.train", f"--data_dir={folder / 'tiny'}"]
    shape = [f"--{name}={getattr(MODEL, name)}" for name in ("width", "hidden", "max_history")]
    if not checkpoints.exists():
        flags = [
            *shape,
            f"--checkpoint_dir={checkpoints}",
            "--early_stop=5",
            "--keep_checkpoints=1",
        ]
        ended = run([*train, *flags], time_limit=240)
        assert ended.code == 0, ended.output
    (checkpoint,) = checkpoints.glob("step-*")
    ended = run([*train, *shape, "--mode=test", f"--resume={checkpoint}"], time_limit=240)
    assert ended.code == 0, ended.output
    row = re.findall(r"^\| all ((?:\| [\d.]+ ){4})", ended.output, re.MULTILINE)
    figures = dict(zip(("NE", "accuracy", "AUC", "GAUC"), row[-1].strip("| ").split(" | ")))
    flags = ["--scenario-name=Offline", "--compute-eval", f"--model-path={checkpoint}"]
    ended = benchmark(folder, *flags, *filter(None, [quant]))
    assert ended.code == 0, ended.output
    log = folder / "logs" / "mlperf_log_accuracy.json"
    reference = ",".join(f"{name}={value}" for name, value in figures.items())
    assert accuracy([f"--path={log}", f"--reference={reference}"]) == 0
    if not quant:
        for name, value in figures.items():
            (found,) = re.findall(rf"^{name} +([\d.]+) %$", ended.output, re.MULTILINE)
            assert float(found) == pytest.approx(100 * float(value), abs=5e-3)


def test_an_error_of_a_reader_ends_the_run_without_a_summary(folder: Path, tmp_path: Path) -> None:
    """The first batch is good; the last timestamp's requests are broken."""
    shutil.copytree(folder / "tiny", tmp_path / "tiny")
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(folder / "user.conf", tmp_path)
    path = tmp_path / "tiny" / "shards" / "00001" / "candidate_ratings.bin"
    ratings = np.fromfile(path, "<f4")
    ratings[-2 * 24 :] = np.nan
    ratings.tofile(path)
    ended = benchmark(tmp_path, "--scenario-name=Offline", "--compute-eval")
    assert ended.code == 1, ended.output
    assert len(re.findall(r"^error: ", ended.output, re.MULTILINE)) == 1
    assert "candidate_ratings.bin" in ended.output
    assert "Traceback" not in ended.output
    summary = tmp_path / "logs" / "mlperf_log_summary.txt"
    assert not summary.exists() or not summary.read_text()


def test_an_interrupted_run_ends_at_once(folder: Path) -> None:
    words = command(folder, "--target-qps=10", "--warmup-ratio=0")
    ended = interrupted(words, after="Server, ", time_limit=20)
    assert ended.code == 130, ended.output
    said = "interrupted; LoadGen wrote no summary"
    assert said in ended.output or ended.output.strip() == "interrupted"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scenario-name=Stream"], "argument --scenario-name: invalid choice"),
        (["--compute-eval=perhaps"], "argument --compute-eval: expected true, 1, yes"),
        (["--dataset=small"], "small"),
        (["--model-path=nowhere"], "nowhere: expected a checkpoint"),
        (["--user-conf=nowhere.conf"], "nowhere.conf"),
        (["--dataset-percentage=0.001"], "expected requests, found none"),
        ([], "expected --target-qps, or Server.target_qps in --user-conf, found neither"),
        (["--scenario-name=Offline", "--find-peak-performance"], "expected --scenario-name=Server"),
        (["--output=/proc/x"], "--output: expected a folder that can be written, found /proc/x"),
    ],
)
def test_a_bad_call_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([*command(folder)[3:], *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_data_of_another_preset_than_its_folder_says_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small").symlink_to(folder / "tiny")
    flags = [f"--dataset-path-prefix={tmp_path}", "--dataset=small"]
    assert main([*command(folder)[3:], *flags]) == 1
    assert "expected data of the preset small, found tiny" in capsys.readouterr().err


def test_a_missing_LoadGen_is_named_with_its_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    assert main(command(folder)[3:]) == 1
    assert "run `make serve-setup`" in capsys.readouterr().err
