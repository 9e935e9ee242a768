"""MLPerf's training log, as MLPerf's own checker reads it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from dlrm.reporting.mlperf_events import MlperfEvents
from dlrm.reporting.mlperf_log import MlperfLog
from tests.support.mlperf_logs import (
    RUN,
    SETTINGS,
    TARGET,
    evaluate,
    opened,
    read_log,
    write_log,
)

mlp_compliance = pytest.importorskip(
    "mlperf_logging.compliance_checker.mlp_compliance", reason="run `make operate-setup`"
)

RULESETS = ("0.7.0", "1.0.0", "1.1.0", "2.0.0", "2.1.0")
# The order that MLPerf's own logs have, with two epochs of 18 steps.
HEADER = [
    *("init_start", "submission_benchmark", "submission_org", "submission_division"),
    *("submission_status", "submission_platform", "seed", "global_batch_size"),
    *("gradient_accumulation_steps", "opt_base_learning_rate", "opt_learning_rate_warmup_steps"),
    *("sgd_opt_base_learning_rate", "lr_decay_start_steps", "sgd_opt_learning_rate_decay_steps"),
    "sgd_opt_learning_rate_decay_poly_power",
    *(["weights_initialization"] * 9),
    *("init_stop", "run_start", "train_samples", "eval_samples", "block_start", "epoch_start"),
]
EVALUATION = ["eval_start", "eval_accuracy", "eval_stop"]
END = ["run_stop", "epoch_stop", "block_stop"]


def keys(path: Path) -> list[str]:
    return [line["key"] for line in read_log(path)]


def valid(path: Path, ruleset: str = "2.1.0") -> bool:
    """What the official checker says."""
    checker = mlp_compliance.make_checker("training", ruleset, quiet=False, werror=True)
    found, *_ = mlp_compliance.main(os.fspath(path), f"training_{ruleset}/common.yaml", checker)
    return bool(found)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A run that reaches the target in its third evaluation."""
    path = tmp_path / "log"
    write_log(path, 0.7, 0.79, 0.803, checkpoint_dir="checkpoints")
    return path


def test_events_and_their_order(log: Path) -> None:
    epoch = ["epoch_stop", "epoch_start"]
    expected = ["cache_clear", *HEADER, *EVALUATION, *EVALUATION, *epoch, *EVALUATION, *END]
    assert keys(log) == expected
    found = read_log(log)
    assert [line["time_ms"] for line in found[1:]] == sorted(line["time_ms"] for line in found[1:])
    assert 59_000 < found[20]["time_ms"] - found[1]["time_ms"] < 120_000, "the process began then"
    values = {line["key"]: line["value"] for line in found}
    assert values["global_batch_size"] == 2048
    assert values["opt_base_learning_rate"] == values["sgd_opt_base_learning_rate"] == 24.0
    assert values["opt_learning_rate_warmup_steps"] == 2
    assert values["lr_decay_start_steps"] == 30
    assert values["sgd_opt_learning_rate_decay_steps"] == 9
    assert (values["train_samples"], values["eval_samples"]) == (1_000_003, 4_000)
    assert values["seed"] == 5
    accuracies = [line for line in found if line["key"] == "eval_accuracy"]
    assert [line["value"] for line in accuracies] == [0.7, 0.79, 0.803]
    assert [line["metadata"]["epoch_num"] for line in accuracies] == [1.5, 2.0, 2.5]
    (stop,) = [line for line in found if line["key"] == "run_stop"]
    assert stop["metadata"]["status"] == "success"
    assert stop["event_type"] == "INTERVAL_END"
    assert {line["metadata"]["file"] for line in found[1:]} == {"dlrm/reporting/mlperf_log.py"}


@pytest.mark.parametrize("ruleset", RULESETS)
def test_the_official_checker_accepts_it(log: Path, ruleset: str) -> None:
    assert valid(log, ruleset)


def test_a_run_that_misses_the_target_is_aborted(tmp_path: Path) -> None:
    write_log(tmp_path / "log", 0.7, 0.79)
    assert keys(tmp_path / "log")[-3:] == END
    assert read_log(tmp_path / "log")[-3]["metadata"]["status"] == "aborted"
    assert not valid(tmp_path / "log")
    # MLPerf asks for the target itself or more; the loop for more, so this run came to its end.
    write_log(tmp_path / "equal", 0.7, TARGET)
    assert read_log(tmp_path / "equal")[-3]["metadata"]["status"] == "success"
    assert valid(tmp_path / "equal")


def test_another_model_in_the_open_division(tmp_path: Path) -> None:
    write_log(tmp_path / "log", 0.81, top_mlp=(8, 1), mlperf_division="open")
    tensors = [line["metadata"].get("tensor") for line in read_log(tmp_path / "log")]
    assert [tensor for tensor in tensors if tensor] == [
        *("embeddings", "bottom_mlp_dense1", "bottom_mlp_dense2", "bottom_mlp_dense3"),
        *("top_mlp_dense1", "top_mlp_dense2"),
    ]
    assert valid(tmp_path / "log")


def test_the_platform_is_this_machine_if_none_is_named(tmp_path: Path) -> None:
    write_log(tmp_path / "log", 0.81, mlperf_platform=None)
    (platform,) = [
        x["value"] for x in read_log(tmp_path / "log") if x["key"] == "submission_platform"
    ]
    assert re.fullmatch(r"2 x .+", platform)


def test_a_resumed_run_goes_on_with_its_log(tmp_path: Path) -> None:
    """Killed after step 20, in the second epoch; the checkpoint is that of step 18."""
    path = tmp_path / "log"
    MlperfEvents(os.fspath(path)).event("cache_clear", True)
    settings = {**SETTINGS, "checkpoint_dir": "checkpoints"}
    first = opened(path)
    first.start(0, {"ranks": 2}, settings)
    evaluate(first, 18, 0.79)
    first.record("step", 20, {"loss": 0.5})
    first.record("error", 20, {"message": "rank 1 stopped"})
    first.end(success=False)
    before = path.read_bytes()
    second = opened(path)
    second.start(18, {"ranks": 1}, settings)
    evaluate(second, 18, 0.79)
    evaluate(second, 27, 0.81)
    second.record("result", 27, {})
    second.end(success=True)
    assert path.read_bytes().startswith(before)
    epoch = ["epoch_stop", "epoch_start"]
    assert keys(path) == [
        *("cache_clear", *HEADER, *EVALUATION, *epoch, "run_resumed", *EVALUATION, *EVALUATION),
        *END,
    ]
    assert valid(path)


def test_an_error_that_nothing_can_resume_aborts(tmp_path: Path) -> None:
    log = opened(tmp_path / "log")
    log.record("error", 0, {"message": "no memory"})
    assert keys(tmp_path / "log") == [], "the clock has not started"
    log.start(0, {"ranks": 2}, SETTINGS)
    log.record("error", 3, {"message": "the loss is not finite"})
    assert keys(tmp_path / "log") == [*HEADER, *END]
    assert read_log(tmp_path / "log")[-3]["metadata"]["status"] == "aborted"


def test_a_run_that_began_anew_replaces_its_unfinished_log(tmp_path: Path) -> None:
    for _ in range(2):
        log = opened(tmp_path / "log")
        log.start(0, {"ranks": 2}, SETTINGS)
        log.end(success=False)
    assert keys(tmp_path / "log") == HEADER


def test_refused_with_one_line(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a new file, found the log of a finished run"):
        opened(log)
    with pytest.raises(ValueError, match=r"mlperf_log=.*: No such file .*; make its folder"):
        opened(tmp_path / "missing" / "log")
    late = opened(tmp_path / "late")
    with pytest.raises(ValueError, match="goes on after step 9, but .* its beginning"):
        late.start(9, {"ranks": 2}, SETTINGS)
    begun = opened(tmp_path / "begun")
    begun.start(0, {"ranks": 2}, SETTINGS)
    begun.end(success=False)
    with pytest.raises(ValueError, match="expected global_batch_size 2048 .* found 64"):
        opened(tmp_path / "begun").start(9, {"ranks": 2}, {**SETTINGS, "global_batch_size": 64})


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_logging.mllog.mllog", None)
    with pytest.raises(ValueError, match="mlperf-logging, found none; run `make operate-setup`"):
        opened(tmp_path / "log")


def test_a_full_disk_ends_the_log_and_not_the_run() -> None:
    said: list[str] = []
    log = MlperfLog("/dev/null", RUN, said.append)
    log.start(0, {"ranks": 2}, SETTINGS)
    assert log._events is not None
    with open("/dev/full", "wb", buffering=0) as full:
        log._events._file = full
        evaluate(log, 9, 0.7)
        evaluate(log, 18, 0.9)
    (line,) = said
    assert re.fullmatch(r"warning: .*--mlperf_log=/dev/null.* No space left .*without it", line)
