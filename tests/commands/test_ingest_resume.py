"""Ingest killed with -9 at random moments and started again: the result of a run left alone.

KILLS says how many kills each engine gets; `make test-ingest` gives ten.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preprocess.__main__ import main
from preprocess.click_model import ClickModelOptions
from preprocess.synthetic import generate
from tests.support.processes import ROOT
from tests.support.spark_session import ON_SPARK, contents

# .ci/run says what is left out of the other profile.
pytestmark = pytest.mark.one_profile

KILLS = int(os.environ.get("KILLS", "2"))
SEED = int(os.environ.get("SEED", "7"))
SHAPE = ["--num_dense=3", "--num_categorical=3"]
FLAGS = {
    "polars": ["--rules=spark", "--frequency_threshold=2", "--shuffle=5", "--part_mib=1",
               "--block_mib=1"],
    "spark": ["--rules=dlrm", "--shuffle=5", "--columns", "--master=local[2]"],
}  # fmt: skip
ROWS = {"polars": 150_000, "spark": 20_000}


def _logs(folder: Path, rows: int) -> list[str]:
    options = ClickModelOptions((30_000, 40, 900), num_dense=3)
    generate(folder / "log.tsv", rows, SEED, options, files=2)
    generate(folder / "zipped.tsv.gz", rows // 4, SEED + 1, options)
    names = ["log.0.tsv", "zipped.tsv.gz", "log.1.tsv"]
    return [str(folder / name) for name in names]


def _start(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with open(folder / "output.txt", "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "preprocess", *arguments],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


# Each start of Spark takes seconds; that a kill of this engine is survived, and how often, is
# slow to show. Polars' kills are quick and take the same journal.
SLOW_ON_SPARK = ["polars", pytest.param("spark", marks=(*ON_SPARK, pytest.mark.slow))]


@pytest.mark.parametrize("engine", SLOW_ON_SPARK)
def test_killed_at_random_moments(engine: str, tmp_path: Path) -> None:
    print(f"seed {SEED}, {KILLS} kills")
    generator = random.Random(f"{SEED} {engine}")
    logs = _logs(tmp_path, ROWS[engine])
    common = [*logs, *SHAPE, *FLAGS[engine], f"--engine={engine}"]
    start = time.monotonic()
    assert _start([*common, f"--output={tmp_path / 'whole'}"], tmp_path).wait() == 0
    duration = time.monotonic() - start
    command = [*common, f"--output={tmp_path / 'killed'}"]
    kills, found = 0, []
    while kills < KILLS:
        process = _start(command, tmp_path)
        delay = generator.uniform(0.1, 0.9) * duration
        try:
            code = process.wait(delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            state = tmp_path / "killed" / "partial" / "state.json"
            text = state.read_text() if state.exists() else '{"state": {}}'
            found.append((round(delay, 2), sorted(json.loads(text)["state"])))
        else:
            # It came to its end before the kill; the next one begins anew.
            assert code == 0, (tmp_path / "output.txt").read_text()
            assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    print(
        "\n".join(
            f"killed after {delay} s of {duration:.1f}; kept: {kept}" for delay, kept in found
        )
    )
    assert _start(command, tmp_path).wait() == 0, (tmp_path / "output.txt").read_text()
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert [name for name in whole if whole[name] != killed.get(name)] == []
    assert whole.keys() == killed.keys()


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("shuffle", [[], ["--shuffle=2"]])
def test_a_kill_after_each_state_and_before_the_next(
    shuffle: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies right after each durable state in turn, with files that are longer than it knows."""
    from preprocess.engine_polars import buckets, write
    from preprocess.outputs import Journal

    monkeypatch.setattr(buckets, "_BUCKET_BYTES", 300_000)
    monkeypatch.setattr(write, "_COPY_ROWS", 700)
    logs = _logs(tmp_path, 24_000)
    flags = ["--rules=dlrm", "--frequency_threshold=2", "--part_mib=1", "--block_mib=1", *shuffle]
    common = [*logs, *SHAPE, *flags]
    assert main([*common, f"--output={tmp_path / 'whole'}"]) == 0
    save, states = Journal.save, 0

    def save_and_die(journal: Journal, state: dict[str, object]) -> None:
        nonlocal states
        save(journal, state)
        states += 1
        raise _Killed

    command = [*common, f"--output={tmp_path / 'killed'}"]
    while True:
        before = states
        monkeypatch.setattr(Journal, "save", save_and_die)
        try:
            assert main(command) == 0
        except _Killed:
            work = tmp_path / "killed" / "partial"
            if json.loads((work / "state.json").read_text())["state"]["phase"] == "publish":
                continue  # then nothing more is written
            for path in work.glob("*_data.bin"):
                with open(path, "ab") as file:
                    file.write(b"left over")
        if states == before:
            break
    assert states >= 8
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--frequency_threshold=3"], "--frequency_threshold=0, this one has 3"),
        (["--shuffle=1"], "--shuffle=None, this one has 1"),
        (["--columns"], "--columns=False, this one has True"),
        (["--engine=polars", "--rules=mlperf"], "--rules=dlrm, this one has mlperf"),
    ],
)
def test_another_command_is_refused(
    change: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A good file and a bad one: the first is kept, so that the run is unfinished."""
    good, bad = tmp_path / "good.tsv", tmp_path / "bad.tsv"
    good.write_text("1\t2\ta\n" * 3)
    bad.write_text("1\t2\tx\n")
    output = tmp_path / "out"
    command = [str(good), str(bad), f"--output={output}", "--num_dense=1", "--num_categorical=1"]
    assert main([*command, "--rules=dlrm"]) == 1
    capsys.readouterr()
    assert main([*command, "--rules=dlrm", *change]) == 1
    error = capsys.readouterr().err
    assert f"{output}: holds an unfinished run with {message}; give the same command" in error
    # A mended log is another log.
    bad.write_text("1\t2\tb\n")
    assert main([*command, "--rules=dlrm"]) == 1
    assert "holds an unfinished run with input 1=" in capsys.readouterr().err
    assert main([*command, "--rules=dlrm", *change, "--restart"]) == 0


def test_two_runs_cannot_share_an_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dlrm.formats.folder_lock import lock_folder

    (tmp_path / "log.tsv").write_text("1\t2\ta\n" * 3)
    held = lock_folder(tmp_path / "out")
    command = [str(tmp_path / "log.tsv"), f"--output={tmp_path / 'out'}", "--rules=dlrm"]
    assert main([*command, "--num_dense=1", "--num_categorical=1"]) == 1
    assert "expected no other run to write here" in capsys.readouterr().err
    os.close(held)
