"""`python3 -m serving loadgen` and `accuracy`: real tests of MLPerf's LoadGen, seconds each."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from serving.__main__ import main
from tests.support.artifacts import write_artifact
from tests.support.processes import Ended, interrupted, run
from tests.support.tiny_data import write_split

pytestmark = pytest.mark.one_profile
pytest.importorskip("mlperf_loadgen")

VOCAB_SIZES, NUM_DENSE = (7, 3, 11), 3
PAIRS = 60_000  # some 200 samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact, and data whose labels follow its logits; `bad` has an id beyond its table."""
    folder = tmp_path_factory.mktemp("loadgen")
    reference = write_artifact(folder / "artifact", VOCAB_SIZES, num_dense=NUM_DENSE, seed=4)
    generator = np.random.default_rng(5)
    dense = generator.random((PAIRS, NUM_DENSE), np.float32)
    ids = generator.integers(0, VOCAB_SIZES, (PAIRS, len(VOCAB_SIZES))).astype(np.int32)
    logits = reference.logits(dense, ids)
    noise = generator.logistic(scale=logits.std(), size=PAIRS)
    labels = (logits + noise > np.median(logits)).astype(np.int32)
    write_split(folder / "data", labels, dense, ids, VOCAB_SIZES, dense_log=False)
    np.save(folder / "auc.npy", roc_auc_score(labels, logits))
    ids[-1, 1] = 3
    write_split(folder / "bad", labels, dense, ids, VOCAB_SIZES, dense_log=False)
    return folder


def loadgen(folder: Path, *flags: str, data: str = "data") -> Ended:
    """Runs LoadGen on the artifact; the logs go to `folder/logs`."""
    return run([*command(folder, data), *flags], time_limit=60)


def command(folder: Path, data: str = "data") -> list[str | Path]:
    paths = {"--artifact": "artifact", "--data": data, "--output": "logs"}
    flags = (f"{flag}={folder / name}" for flag, name in paths.items())
    return [sys.executable, "-m", "serving", "loadgen", *flags]


def check_auc(folder: Path, output: str) -> None:
    """The printed AUC is that of the float64 logits, up to the digits of float32 predictions."""
    (found,) = re.findall(r"^AUC +([\d.]+) %$", output, re.MULTILINE)
    assert float(found) == pytest.approx(100 * float(np.load(folder / "auc.npy")), abs=3e-4)


def test_offline_is_valid(folder: Path) -> None:
    # More samples than any machine scores in this time, however busy it was in the warm-up.
    ended = loadgen(folder, "--scenario=Offline", "--min_duration_ms=400", "--target_qps=60000")
    assert ended.code == 0, ended.output
    assert "Result is : VALID" in ended.output
    assert "Samples per second:" in ended.output


def test_server_is_valid_within_its_bound(folder: Path) -> None:
    """The bound is wide, as other tests use the cores too."""
    conf = folder / "user.conf"
    conf.write_text("*.Server.target_qps = 600\n*.Server.target_latency = 500\n")
    ended = loadgen(folder, "--scenario=Server", f"--user_conf={conf}", "--min_duration_ms=1500")
    assert ended.code == 0, ended.output
    assert "Result is : VALID" in ended.output
    assert "settings: target_qps 600, target_latency (ns) 500000000" in ended.output


def test_an_impossible_bound_is_invalid(folder: Path) -> None:
    ended = loadgen(
        folder,
        *("--scenario=Server", "--target_qps=300", "--target_latency_ms=0.001"),
        "--min_duration_ms=500",
    )
    assert ended.code == 1, ended.output
    assert "Result is : INVALID" in ended.output
    assert "Performance constraints satisfied : NO" in ended.output
    assert "Recommendations:" in ended.output


def test_the_accuracy_log_holds_the_auc_of_scikit_learn(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = loadgen(folder, "--mode=AccuracyOnly", f"--reference={folder / 'artifact'}")
    assert ended.code == 0, ended.output
    check_auc(folder, ended.output)
    assert "99.9 %      held" in ended.output
    assert f"pairs       {PAIRS:,}" in ended.output

    logs = folder / "logs"
    log = f"--log={logs / 'mlperf_log_accuracy.json'}"
    assert main(["accuracy", log, "--reference_auc=0.9999"]) == 1
    output = capsys.readouterr().out
    check_auc(folder, output)
    assert "99 %        NOT held" in output
    data = [f"--trace={logs / 'trace.txt'}", f"--data={folder / 'data'}"]
    assert main(["accuracy", log, *data, f"--reference={folder / 'artifact'}"]) == 0
    assert "this is 100.0000% of it" in capsys.readouterr().out


def test_predictions_alone_get_their_labels_from_the_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--mode=AccuracyOnly", "--predictions_only", "--scenario=Server", "--target_qps=2000")
    ended = loadgen(folder, *flags)
    assert ended.code == 0, ended.output
    check_auc(folder, ended.output)
    logs = folder / "logs"
    log = f"--log={logs / 'mlperf_log_accuracy.json'}"
    data = [f"--trace={logs / 'trace.txt'}", f"--data={folder / 'data'}"]
    assert main(["accuracy", log, "--predictions_only", *data]) == 0
    check_auc(folder, capsys.readouterr().out)
    assert main(["accuracy", log]) == 1
    assert "a multiple of 8" in (error := capsys.readouterr().err) or "label 0 or 1" in error


def test_an_error_while_LoadGen_runs_is_one_line_without_a_summary(folder: Path) -> None:
    ended = loadgen(folder, "--mode=AccuracyOnly", data="bad")
    assert ended.code == 1, ended.output
    assert ended.count("error: ") == 1
    assert "Traceback" not in ended.output
    summary = folder / "logs" / "mlperf_log_summary.txt"
    assert not summary.exists() or not summary.read_text()


def test_an_interrupted_test_ends_at_once(folder: Path) -> None:
    words = [*command(folder), "--scenario=Server", "--target_qps=10"]
    ended = interrupted(words, after="warm-up", time_limit=20)
    assert ended.code == 130, ended.output
    said = "interrupted; LoadGen wrote no summary"
    assert said in ended.output or ended.output.strip() == "interrupted"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scenario=Stream"], "argument --scenario: invalid choice"),
        (["--artifact=nowhere"], "nowhere"),
        (["--data=nowhere"], "nowhere"),
        (["--user_conf=nowhere.conf"], "nowhere.conf"),
        (["--url=localhost:1"], "expected either --artifact=FOLDER or --url=HOST:PORT"),
        (["--samples_to_aggregate_min=5"], "--samples_to_aggregate_max=M"),
        (["--samples_to_aggregate_fix=5", "--quantiles=x"], "expected one of --quantiles"),
        (["--compliant", "--min_duration_ms=5"], "--compliant: expected none of the flags"),
        (["--mode=FindPeakPerformance"], "expected --scenario=Server"),
        (["--scenario=Server"], "expected --target_qps, or Server.target_qps in --user_conf"),
    ],
)
def test_a_bad_call_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    base = [f"--artifact={folder / 'artifact'}", f"--data={folder / 'data'}"]
    assert main(["loadgen", *base, f"--output={folder / 'refused'}", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_data_of_another_model_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, dense = np.zeros(500, np.int32), np.zeros((500, NUM_DENSE), np.int32)
    data = write_split(tmp_path / "data", labels, dense, np.zeros((500, 3), np.int32), (7, 3, 12))
    flags = [f"--artifact={folder / 'artifact'}", f"--data={data}", f"--output={tmp_path}"]
    assert main(["loadgen", *flags]) == 1
    message = f"{data}: expected 11 rows of table 2, as the model has, found 12"
    assert message in capsys.readouterr().err


def test_a_missing_LoadGen_is_named_with_its_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    base = [f"--artifact={folder / 'artifact'}", f"--data={folder / 'data'}"]
    assert main(["loadgen", *base, f"--output={folder / 'refused'}"]) == 1
    assert "run `make serve-setup`" in capsys.readouterr().err
