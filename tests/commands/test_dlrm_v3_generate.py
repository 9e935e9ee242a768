"""`dlrm_v3.generate` as users call it: the same bytes whatever happens, and the reference's CSV."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dlrm_v3.data.stream import open_stream
from dlrm_v3.generate.__main__ import main as generate
from dlrm_v3.generate.from_csv import main as from_csv
from dlrm_v3.generate.to_csv import main as to_csv
from tests.support.processes import ROOT

pytestmark = pytest.mark.one_profile

POPULATION = (
    *("--preset=tiny", "--categories=16", "--timestamps=20", "--train_timestamps=18"),
    *("--candidates=8", "--inference_candidates=64", "--events_per_item=50"),
)
SMALL = (*POPULATION, "--users=240", "--items=2000", "--shards=4")
LARGER = (*POPULATION, "--users=8000", "--items=80000", "--shards=8")
COMMAND = (sys.executable, "-m", "dlrm_v3.generate")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generate") / "data"
    done = run(*SMALL, path)
    assert (done.returncode, done.stderr) == (0, "")
    return path


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate([*SMALL, str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'shards' / '00000' / 'shard.json'}: complete"
    assert " a second; processes: 1" in lines[4]
    assert [line.partition(":")[0] for line in lines[5:]] == [
        *("best possible, train", "  user_alone", "  item_alone"),
        *("best possible, inference", "  user_alone", "  item_alone"),
        *("best possible, eval", "  user_alone", "  item_alone"),
    ]
    assert "normalised_entropy 0.1" in lines[5]


@pytest.mark.parametrize("processes", [2, 3])
def test_the_same_bytes_with_more_processes(folder: Path, tmp_path: Path, processes: int) -> None:
    assert generate([*SMALL, f"--processes={processes}", str(tmp_path)]) == 0
    assert contents(tmp_path) == contents(folder)


def test_the_same_bytes_in_parts(folder: Path, tmp_path: Path) -> None:
    for shards in ("2:3", "0:0", "1:1"):
        assert not (tmp_path / "best.json").exists()
        assert generate([*SMALL, f"--shards_to_write={shards}", str(tmp_path)]) == 0
    assert contents(tmp_path) == contents(folder)


def test_the_first_shards_are_those_of_the_whole(folder: Path, tmp_path: Path) -> None:
    assert generate([*SMALL, "--written_shards=2", str(tmp_path)]) == 0
    columns = [name for name in contents(tmp_path) if name.endswith(".bin")]
    assert len(columns) == 2 * 9
    assert all(contents(tmp_path)[name] == contents(folder)[name] for name in columns)


@pytest.mark.parametrize("change", ["--seed=1002", "--user_share=0.6", "--candidates=7"])
def test_other_settings_give_other_bytes(folder: Path, tmp_path: Path, change: str) -> None:
    assert generate([*SMALL, change, str(tmp_path)]) == 0
    ours, others = contents(folder), contents(tmp_path)
    assert ours.keys() == others.keys()
    for name in ours:
        if name.endswith(("items.bin", "ratings.bin")):
            assert ours[name] != others[name]


def test_no_shard_is_like_another(folder: Path) -> None:
    files = [value for name, value in contents(folder).items() if name.endswith("_items.bin")]
    assert len(set(files)) == len(files) == 8


def killed_and_resumed(folder: Path, kills: int, processes: int) -> None:
    """Kills runs with -9 at random moments, every second time without their workers."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    dice = random.Random(seed)
    flags = (*LARGER, f"--processes={processes}")
    start = time.monotonic()
    assert run(*flags, folder / "whole").returncode == 0
    seconds, killed = time.monotonic() - start, folder / "killed"
    for number in range(kills):
        process = subprocess.Popen(
            [*COMMAND, *flags, str(killed)],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(dice.uniform(0.2, seconds))
        if number % 2:
            process.kill()  # its workers find out and end
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        names = sorted(path.name for path in (killed / "shards").glob("*"))
        print(f"kill {number}: {names}")
        for name in names[4:]:  # leaves work for the next one
            shutil.rmtree(killed / "shards" / name, ignore_errors=True)
    wait_for_group(process.pid)  # a worker that still writes would leave its folder behind
    assert run(*flags, killed).returncode == 0
    assert_no_remainder(killed, contents(folder / "whole"))


def wait_for_group(group: int) -> None:
    """Waits until no process of a group is left."""
    until = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(group, 0)
            assert time.monotonic() < until
            time.sleep(0.01)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
def test_killed_at_more_random_moments(tmp_path: Path, processes: int) -> None:
    killed_and_resumed(tmp_path, 12, processes)


def assert_no_remainder(folder: Path, whole: dict[str, bytes]) -> None:
    """Checks that a folder has these files and nothing half-written."""
    assert contents(folder) == whole
    assert all(path.name.isdecimal() for path in (folder / "shards").iterdir())


def test_workers_end_with_the_command(tmp_path: Path) -> None:
    """A worker whose command is gone leaves the shard that it was writing."""
    larger = [*LARGER[:-1], "--shards=2", "--user_share=1"]
    process = subprocess.Popen(
        [*COMMAND, *larger, "--processes=2", str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 30
    while len(list((tmp_path / "shards").glob("*.tmp"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    workers = [int(path.name.split(".")[1]) for path in (tmp_path / "shards").glob("*.tmp")]
    process.kill()
    process.wait()
    while any(Path(f"/proc/{worker}/stat").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not list((tmp_path / "shards").glob("?????"))


def test_a_worker_that_was_killed_is_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, *LARGER, "--processes=2", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 30
    while not (workers := list((tmp_path / "shards").glob("*.tmp"))):
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(int(workers[0].name.split(".")[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == (
        f"error: {tmp_path}: a process that wrote a shard was ended; run the same command again, "
        "finished shards are kept\n"
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert generate(list(map(str, arguments))) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--preset=tiny", "--users=7"], "--shards: expected a divisor of users (7), found 4"),
        (["--preset=huge"], "invalid choice: 'huge'"),
        (["--preset=tiny", "--users=many"], "invalid int value: 'many'"),
        (["--preset=tiny", "--processes=0"], "--processes: expected at least 1, found 0"),
        (["--preset=tiny", "--shards_to_write=2:4"], "--shards_to_write: expected FIRST:LAST with"),
        (["--preset=tiny", "--shards_to_write=2"], "0 <= FIRST <= LAST < 4, found '2'"),
        (["--preset=tiny", "--shards_to_write=3:2"], "0 <= FIRST <= LAST < 4, found '3:2'"),
        ([], "the following arguments are required: --preset"),
    ],
)
def test_flags_that_cannot_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str], expected: str
) -> None:
    assert expected in refused(capsys, *flags, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_setting_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    error = refused(capsys, *SMALL, "--seed=2", folder)
    assert f"{folder / 'metadata.json'}: seed: expected 2, found 1001" in error
    assert contents(folder) == before


def test_a_folder_of_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert "expected an empty folder" in refused(capsys, *SMALL, tmp_path)
    assert contents(tmp_path) == {"precious.txt": b"mine"}


def test_every_setting_has_its_help() -> None:
    text = run("--help").stdout
    assert " ".join(text.split()).count("(default: the preset's)") == 14


# The reference's files.


@pytest.fixture(scope="module")
def csv_folder(folder: Path) -> Path:
    path = folder.parent / "csv"
    assert to_csv([str(folder), str(path)]) == 0
    return path


def test_there_and_back(folder: Path, csv_folder: Path, tmp_path: Path) -> None:
    assert from_csv([*SMALL, str(csv_folder), str(tmp_path)]) == 0
    ours, back = contents(folder), contents(tmp_path)
    columns = [name for name in ours if name.endswith(".bin")]
    for name in columns:
        if "probabilities" in name:
            assert np.isnan(np.frombuffer(back[name], "<f4")).all()
        else:
            assert back[name] == ours[name], name
    assert "best.json" not in back


def test_the_layout_is_the_references(folder: Path, csv_folder: Path) -> None:
    """Each request, found by the rules of the reference, is what our reader finds."""
    stream = open_stream(folder)
    csv.field_size_limit(sys.maxsize)
    starts = rows(csv_folder / "offset.csv")
    request_starts = rows(csv_folder / "requests_per_ts_offset.csv")[0]
    so_far = rows(csv_folder / "users_cumsum_per_ts.csv")
    for timestamp in (0, 5, 17, 18, 19):
        part = "train" if timestamp < 18 else "inference"
        requests = numbers(
            fields_at(csv_folder / "requests_per_ts.csv", request_starts[timestamp])[0]
        )
        assert requests == stream.users(timestamp, part).tolist()
        files = [sum(rows(csv_folder / f"ts_{shard}_{timestamp}.csv"), []) for shard in range(4)]
        assert sum(files, []) == requests
        assert np.cumsum([len(file) for file in files]).tolist() == so_far[timestamp]
        batch = stream.batch(np.array(requests), timestamp, part, 10**6)
        for number in (0, len(requests) // 2, len(requests) - 1):
            user = requests[number]
            fields = fields_at(csv_folder / f"{user // 60}.csv", starts[user // 60][user % 60])
            assert len(fields) == 4 * 22
            own = timestamp + (1 if timestamp < 18 else 2)  # the evaluation lies between
            steps = [step for step in range(own) if step != 19]
            history = [item for step in steps for item in numbers(fields[4 * step + 2])]
            now = numbers(fields[4 * own])
            start, end = batch.offsets[number : number + 2]
            assert batch.items[start:end].tolist() == history + now
            first = batch.targets[:number].sum()
            ratings = np.array(fields[4 * own + 1].split(","), np.float32)
            assert batch.ratings[first : first + len(ratings)].tolist() == ratings.tolist()
    evaluation = stream.batch(np.array([61]), 18, "eval", 0)
    fields = fields_at(csv_folder / "1.csv", starts[1][1])
    assert numbers(fields[4 * 19]) == evaluation.items.tolist()


def rows(path: Path) -> list[list[int]]:
    with open(path, newline="") as file:
        return [numbers(row[0]) for row in csv.reader(file)]


def fields_at(path: Path, start: int) -> list[str]:
    with open(path) as file:
        file.seek(start)
        return next(csv.reader([file.readline()]))


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")] if text else []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda line: line + ",", "fields: expected 88 of 22 steps, found 89"),
        (lambda line: line.replace('"', '"7777,', 1), "step 0: candidate_items: expected numbers "),
        (lambda line: line.replace('"', '"7,', 1), "step 0: expected an item for each rating"),
        (lambda line: line.replace('"', '"-1,', 1), "from 0 to 1999, found '-1,"),
        (lambda line: line.replace('"', '"1.5,', 1), "from 0 to 1999, found '1.5,"),
        (lambda line: line.replace('"', '"seven,', 1), "found 'seven,"),
    ],
)
def test_a_line_that_cannot_be(
    csv_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: object,
    expected: str,
) -> None:
    broken = Path(shutil.copytree(csv_folder, tmp_path / "csv"))
    lines = (broken / "1.csv").read_text().splitlines()
    lines[2] = change(lines[2])  # type: ignore[operator]
    (broken / "1.csv").write_text("\n".join(lines) + "\n")
    assert from_csv([*SMALL, str(broken), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {broken / '1.csv'}: line 3: ")
    assert expected in error
    assert error.count("\n") == 1
    assert [path.name for path in (tmp_path / "out" / "shards").iterdir()] == ["00000"]


def test_files_of_other_settings(
    csv_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert from_csv([*SMALL, "--users=200", str(csv_folder), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: {csv_folder / '0.csv'}: expected 50 lines, one a user, found 60; see --users\n"
    )


def test_csv_into_a_folder_with_files_is_refused(
    folder: Path, csv_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert to_csv([str(folder), str(csv_folder)]) == 1
    assert "expected an empty folder" in capsys.readouterr().err


def test_more_files_are_opened_than_the_usual_limit_allows(folder: Path) -> None:
    # Each mapped file holds a descriptor: four shards have 36.
    command = f"ulimit -Sn 32; exec {sys.executable} -m dlrm_v3.data.verify {folder}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
