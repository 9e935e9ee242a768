"""The study of seeds and types: its table, and what it keeps of finished and failed runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.stability import __main__ as command
from benchmarks.stability.plot import plot_stability
from benchmarks.stability.runs import SeedRun
from benchmarks.stability.table import markdown, table
from dlrm import cli
from tests.support.tiny_data import GLOBAL_BATCH, write_random_split

STEPS = 2
SAMPLES = STEPS * GLOBAL_BATCH
FLAGS = (
    f"--global_batch_size={GLOBAL_BATCH}",
    *("--embedding_dim=4", "--bottom_mlp=4", "--top_mlp=1", "--warmup_steps=0"),
    *("--decay_start_step=9", "--decay_steps=0", "--auc_target=1", "--eval_interval=1"),
)
PNG = b"\x89PNG"


def a_run(kind: str, seed: int, *aucs: float, error: str | None = None) -> SeedRun:
    steps = tuple(range(10, 10 + 10 * len(aucs), 10))
    return SeedRun(f"{kind} {seed}", seed, kind, steps, aucs, 1.0, error)


def test_the_table_has_each_auc_their_spread_and_the_difference_of_equal_seeds() -> None:
    runs = [
        *(a_run("float32", 8, 0.5, 0.70), a_run("float16", 8, 0.65, 0.71)),
        *(a_run("float32", 9, 0.5, 0.60), a_run("float16", 9, 0.50, 0.64)),
        *(a_run("float32", 10, 0.5, 0.80), a_run("float16", 10, error="loss is not finite")),
    ]
    rows = {name: values for name, *values in table(runs, target=0.62)}
    assert rows["seed"] == ["float32", "float16"]
    assert rows["9"] == ["0.600000", "0.640000"]
    assert rows["10"] == ["0.800000", "diverged"]
    assert rows["mean"] == ["0.700000", "0.675000"]
    # Of 0.7, 0.6, 0.8, and of 0.71, 0.64: sqrt(0.02 / 2) and 0.07 / sqrt(2).
    assert rows["standard deviation"] == ["0.100000", "0.049497"]
    # 0.01 and 0.04: mean 0.025, deviation 0.03 / sqrt(2), error of the mean 0.015. Had seed 10
    # counted, or seeds been confused, the mean would be another.
    assert rows["difference from float32"] == ["-", "+0.025000 ± 0.015000"]
    assert rows["steps until above 0.62"] == ["20 - 20, 1 never", "10 - 20, 1 never"]


def test_the_table_of_one_run_has_dashes_instead_of_spreads() -> None:
    text = markdown(table([a_run("bfloat16", 3, 0.6)], target=0.7))
    assert "| standard deviation | - |" in text
    assert "difference" not in text  # there is no float32
    assert text.splitlines()[:3] == ["| seed | bfloat16 |", "|---|---|", "| 3 | 0.600000 |"]


def test_the_plot_is_written_also_where_all_runs_of_a_type_diverged(tmp_path: Path) -> None:
    runs = [a_run("float32", 8, 0.6, 0.7), a_run("float16", 8, error="loss is not finite")]
    plot_stability(str(tmp_path / "a.png"), runs, best=0.8)
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def study(
    monkeypatch: pytest.MonkeyPatch, folder: Path, options: Sequence[str], *flags: str
) -> int:
    """Runs the command on the data and into the output folder below `folder`."""
    line = ["stability", str(folder), f"--output={folder / 'out'}", "--jobs=1", *options]
    monkeypatch.setattr(sys, "argv", [*line, "--", *FLAGS, *flags])
    return cli.exit_code(command.main)


@pytest.mark.runs
def test_finished_runs_are_kept_and_more_seeds_add_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        write_random_split(tmp_path / part, SAMPLES)
    kept = tmp_path / "out" / "runs.jsonl"

    assert study(monkeypatch, tmp_path, ["--types=float32", "--seeds=1"], "--lr=0.1") == 0
    (first,) = kept.read_text().splitlines()
    events = (tmp_path / "out" / "float32-8" / "events.jsonl").read_text().splitlines()
    evaluated = [e["auc"] for e in map(json.loads, events) if e["event"] == "evaluation"]
    assert json.loads(first)["aucs"] == evaluated
    assert len(evaluated) == STEPS

    # A crash may leave a line that was cut short.
    kept.write_text(f'{first}\n{{"key": "cut\n')
    capsys.readouterr()
    assert study(monkeypatch, tmp_path, ["--types=float32", "--seeds=1"], "--lr=0.1") == 0
    shown = capsys.readouterr().out
    assert "of 1" not in shown, "trained again what was finished"
    assert f"| 8 | {evaluated[-1]:.6f} |" in shown

    # Another rate is another run, and one that diverges is a result too.
    diverging = ["--types=float32", "--seeds=1"]
    assert study(monkeypatch, tmp_path, diverging, "--lr=1e30") == 0
    shown = capsys.readouterr().out
    assert "| 8 | diverged |" in shown
    assert "not finite" in shown or "the log loss is" in shown


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--types=float64"], "--types: expected some of float32,bfloat16,float16"),
        (["--seeds=0"], "expected --seeds of 1 or more, found 0"),
        ([], "expected a folder with train/ and test/, found no train/"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    line: str,
) -> None:
    assert study(monkeypatch, tmp_path, options) == 1
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


@pytest.mark.runs
def test_another_failure_stops_the_study_with_what_the_run_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random_split(tmp_path / "train", SAMPLES)  # and no test/
    assert study(monkeypatch, tmp_path, ["--types=float32", "--seeds=1"], "--lr=0.1") == 1
    assert str(tmp_path / "test") in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs.jsonl").exists()
