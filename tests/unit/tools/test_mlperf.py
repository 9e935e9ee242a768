"""Five logs become a submission that MLPerf's own checkers accept, and faults that they find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mlperf_logs import SETTINGS, Events, change_log, write_log
from tools.mlperf import page_cache
from tools.mlperf.checkers import check_files, check_log, check_package
from tools.mlperf.command_line import main
from tools.mlperf.runs import run_all
from tools.mlperf.score import RunResult, read_result, score
from tools.mlperf.tree import build_tree, file_name

pytest.importorskip("mlperf_logging", reason="run `make operate-setup`")

MINUTES = (3, 1, 4, 1.5, 9)


def last_for(minutes: float) -> Callable[[Events], Events]:
    """Sets the time from run_start to run_stop."""

    def change(events: Events) -> Events:
        start = next(event["time_ms"] for event in events if event["key"] == "run_start")
        for event in events:
            if event["key"] in ("run_stop", "epoch_stop", "block_stop"):
                event["time_ms"] = start + int(60_000 * minutes)
        return events

    return change


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    """Of five runs that reach the target at 2 epochs, with the seeds 0 to 4."""
    paths = [tmp_path / f"log{number}" for number in range(5)]
    for seed, (path, minutes) in enumerate(zip(paths, MINUTES)):
        write_log(path, 0.7, 0.81, seed=seed)
        change_log(path, last_for(minutes))
    return paths


def packed(logs: list[Path], out: Path, **system: str) -> Path:
    description = dict.fromkeys(REQUIRED, "")
    description.update(submitter="We", division="closed", system_name="two cores", **system)
    return build_tree(out, description, logs)


def required_fields() -> list[str]:
    """The names that MLPerf's checker of the description asks for, read from its source."""
    from mlperf_logging.system_desc_checker import system_desc_checker

    source = Path(system_desc_checker.__file__).read_text()
    part = source.partition("required_fields = [")[2].partition("]")[0]
    return [line.strip().strip('",') for line in part.splitlines() if line.strip()]


REQUIRED = required_fields()


def test_the_command_packs_checks_and_scores(
    logs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["package", str(out), "--notes", "a test", *map(str, logs)]) == 0
    output = capfd.readouterr().out
    assert output.count("SUCCESS") == 7
    assert "log4: success, AUC 0.810000 at epoch 2.000, 9.00 minutes" in output
    # 1 and 9 are dropped.
    assert f"score: {(3 + 4 + 1.5) / 3:.3f} minutes" in output
    tree = out / "An_organisation"
    (system,) = (tree / "systems").iterdir()
    description = json.loads(system.read_text())
    assert len(REQUIRED) == 33
    assert description.keys() == set(REQUIRED)
    assert description["host_processor_vcpu_count"] == str(os.cpu_count())
    assert (description["sw_notes"], description["status"]) == ("a test", "Available on-premise")
    results = tree / "results" / system.stem / "dlrm"
    names = sorted(path.name for path in results.iterdir() if path.suffix == ".txt")
    assert names == [f"result_{number}.txt" for number in range(5)]
    code = tree / "benchmarks" / "dlrm" / "implementations" / "tensorflow"
    done = subprocess.run(
        [sys.executable, "main.py", "--help"], cwd=code, capture_output=True, text=True, check=True
    )
    assert "mlperf_log:" in done.stdout
    assert (code / "docs").is_dir()


def test_an_earlier_tree_is_replaced_but_nothing_else(logs: list[Path], tmp_path: Path) -> None:
    tree = packed(logs, tmp_path / "out")
    in_it = sorted(tree.glob("results/*/dlrm/result_*.txt"))
    assert len(in_it) == 5
    with pytest.raises(ValueError, match=r"result_0.txt: expected logs outside of .*/out/We"):
        packed(in_it, tmp_path / "out")
    assert packed(logs[:3], tmp_path / "out") == tree
    assert len(list(tree.glob("results/*/dlrm/result_*.txt"))) == 3

    other = tmp_path / "home" / "We" / "letter.txt"
    other.parent.mkdir(parents=True)
    other.touch()
    with pytest.raises(ValueError, match=r"found letter.txt in it; name another OUT"):
        packed(logs, tmp_path / "home")
    assert other.exists()


def without(key: str) -> Callable[[Events], Events]:
    return lambda events: [event for event in events if event["key"] != key]


def run_starts_first(events: Events) -> Events:
    keys = [event["key"] for event in events]
    stop, start = keys.index("init_stop"), keys.index("run_start")
    events[stop], events[start] = events[start], events[stop]
    return events


def below_target(events: Events) -> Events:
    for event in events:
        if event["key"] == "eval_accuracy":
            event["value"] = 0.8024
    return events


def stops_twice(events: Events) -> Events:
    (stop,) = [event for event in events if event["key"] == "run_stop"]
    return [*events, stop]


FAULTS: dict[str, tuple[Callable[[Events], Events], str]] = {
    "missing event": (without("eval_samples"), "EXACTLY_ONE occurrence of 'eval_samples'"),
    "no cleared cache": (without("cache_clear"), "AT_LEAST_ONE occurrence of 'cache_clear'"),
    "wrong order": (run_starts_first, "CHECK for 'run_start' failed"),
    "AUC below target": (below_target, "Failed checks for eval_accuracy"),
    "second run_stop": (stops_twice, "EXACTLY_ONE occurrence of 'run_stop' but found 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_log_checker_finds(fault: str, logs: list[Path]) -> None:
    change, words = FAULTS[fault]
    change_log(logs[0], change)
    verdict = check_log(logs[0], "2.1.0")
    assert not verdict.passed
    assert words in verdict.output


def set_batch(size: int) -> Callable[[Events], Events]:
    def change(events: Events) -> Events:
        for event in events:
            if event["key"] == "global_batch_size":
                event["value"] = size
        return events

    return change


def after_half_an_epoch(events: Events) -> Events:
    """No reference run reaches the target so early."""
    for event in events:
        if event["key"] == "eval_accuracy":
            event["metadata"]["epoch_num"] = 1.5
    return events


@pytest.mark.parametrize(
    ("faulty", "change", "words"),
    [
        (1, without("seed"), "logs no seed"),
        (2, below_target, "2 files do not comply, directory cannot be accepted"),
        (1, set_batch(4096), "Batch sizes in files do not match"),
        (5, set_batch(131072), "Missing RCP, please submit RCP with BS = 131072"),
        (5, after_half_an_epoch, "RCP Test Failed: Missing RCP, please submit RCP with BS = 2048"),
    ],
    ids=["seed", "AUC below target", "another batch", "too large a batch", "converges too fast"],
)
def test_the_package_checker_finds(
    faulty: int, change: Callable[[Events], Events], words: str, logs: list[Path], tmp_path: Path
) -> None:
    for log in logs[:faulty]:
        change_log(log, change)
    verdict = check_package(packed(logs, tmp_path / "out"), "2.1.0")
    assert not verdict.passed
    assert words in verdict.output


def test_the_repository_checker_finds_a_name(logs: list[Path], tmp_path: Path) -> None:
    tree = packed(logs, tmp_path / "out")
    (tree / "systems" / "a name").write_text("")
    verdict = check_files(tree, "2.1.0")
    assert not verdict.passed
    assert "git-unfriendly" in verdict.output
    assert file_name("1 x NVIDIA H100 (80 GB)") == "1_x_NVIDIA_H100_80_GB"


def test_the_command_says_what_a_checker_found(
    logs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change_log(logs[1], without("eval_samples"))
    assert main(["package", str(tmp_path / "out"), *map(str, logs)]) == 1
    output = capfd.readouterr().out
    assert "log1: success, AUC 0.810000 at epoch 2.000, 1.00 minutes; compliance checker: FAILED"
    assert output.count("eval_samples") >= 1
    change_log(logs[1], without("run_stop"))
    with pytest.raises(ValueError, match="log1: expected .* a finished run, found no run_stop"):
        main(["package", str(tmp_path / "out"), *map(str, logs)])


@pytest.mark.parametrize("aborted", [0, 1])
def test_the_score_is_mlperfs_own(aborted: int, logs: list[Path], tmp_path: Path) -> None:
    """Compared with the function behind MLPerf's summary, which drops aborted runs too."""
    from mlperf_logging.result_summarizer import result_summarizer

    for log in logs[:aborted]:
        log.unlink()
        write_log(log, 0.7, 0.75)
    folder = tmp_path / "results"
    folder.mkdir()
    for number, log in enumerate(logs):
        (folder / f"result_{number}.txt").write_bytes(log.read_bytes())
    for scaling in (None, 1.25):
        if scaling:
            (folder / "scaling.json").write_text(json.dumps({"scaling_factor": scaling}))
        expected, *_ = result_summarizer._compute_strong_score_standalone(
            "dlrm", "two cores", False, str(folder), "training", "2.1.0"
        )
        assert score([read_result(log) for log in logs], folder) == pytest.approx(expected)


def test_no_score(tmp_path: Path) -> None:
    good, bad = RunResult("success", 1.0, 0.81, 2.0), RunResult("aborted", 1.0, 0.79, 3.0)
    for results in ([good, good], [good, good, good, bad, bad]):
        with pytest.raises(ValueError, match="at least three runs, and all but one"):
            score(results, tmp_path)


@pytest.mark.parametrize("flag", ["seed", "mlperf_log", "checkpoint_dir"])
def test_runs_must_be_apart(flag: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected no --{flag} among the flags"):
        run_all(tmp_path, 2, 1, ["main.py", "--epochs=1", f"--{flag}=1"])


def test_a_run_that_is_done_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "result_0.txt", 0.81, **SETTINGS)
    before = (tmp_path / "result_0.txt").read_bytes()
    run_all(tmp_path, 1, 1, ["main.py"])
    assert (tmp_path / "result_0.txt").read_bytes() == before
    assert "done before, and kept" in capsys.readouterr().out


def test_who_may_not_clear_the_cache_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the kernel's file nor sudo is there."""
    monkeypatch.setattr(page_cache, "_DROP", tmp_path / "missing" / "drop_caches")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(ValueError, match="the page cache is not cleared: expected root, or sudo"):
        page_cache.clear(os.fspath(tmp_path / "log"))
    assert not (tmp_path / "log").exists(), "nothing was cleared, so nothing is logged"
