"""Bad inputs as users meet them: the message, the exit code, and that no rank hangs or stays."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from dataset import open_data
from dlrm.config import Config
from dlrm.formats.checksums import sum_of, write_checksums
from dlrm.train import run as program
from model import build_model
from tests.multi_rank.workers import failures as worker
from tests.support.processes import Ended, horovodrun, run, without_modules
from tests.support.tiny_data import (
    GLOBAL_BATCH,
    NUM_DENSE,
    SETTINGS,
    write_random_split,
)

TRAIN, TEST = 24, 12
TIME_LIMIT = 90.0  # a start on two ranks takes 10 to 40 s of two cores, by how busy they are
# In the second step: the second rank's block, and the third sample of it.
RANK_1_BLOCK = GLOBAL_BATCH + GLOBAL_BATCH // 2
RANK_1_SAMPLE = RANK_1_BLOCK + 2


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with good training and test data."""
    write_random_split(tmp_path / "data" / "train", TRAIN)
    write_random_split(tmp_path / "data" / "test", TEST)
    return tmp_path / "data"


def cut(name: str, by: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        os.truncate(path, path.stat().st_size - by)

    return change


def grow(name: str, by: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with open(folder / name, "ab") as file:
            file.write(bytes(by))

    return change


def remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return change


def describe(part: str, **changes: Any) -> Callable[[Path], None]:
    """Changes keys of metadata.json; None takes one out."""

    def change(folder: Path) -> None:
        path = folder / part / "metadata.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def put(name: str, value: Any, record: int, column: int, columns: int) -> Callable[[Path], None]:
    """Overwrites one int32 or float32 value, by the type of `value`."""

    def change(folder: Path) -> None:
        dtype = "<f4" if isinstance(value, float) else "<i4"
        values = np.fromfile(folder / name, dtype)
        values[record * columns + column] = value
        values.tofile(folder / name)

    return change


def enormous(first: int) -> Callable[[Path], None]:
    """Dense values as float32 without a logarithm, in four records far beyond float16.

    For any two weights one of the four combinations of signs makes their unit infinite, past ReLU.
    """

    def change(folder: Path) -> None:
        path = folder / "train" / "dense.bin"
        values = np.fromfile(path, "<i4").astype("<f4").reshape(-1, NUM_DENSE)
        values[first : first + 4] = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * 1e30
        values.tofile(path)
        describe("train", dense_raw_type="float32", dense_log=False)(folder)

    return change


def both(first: Callable[[Path], None], second: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        first(folder)
        second(folder)

    return change


def seal(folder: Path) -> None:
    """Writes the checksums of the data as it is."""
    for part in (folder / "train", folder / "test"):
        sums = {path.name: sum_of(path) for path in part.glob("*.bin")}
        write_checksums(part, sums)


def drop_last_sample(folder: Path) -> None:
    """Leaves files that fit each other."""
    for name, width in (("label.bin", 1), ("dense.bin", NUM_DENSE), ("category.bin", 2)):
        cut(f"train/{name}", 4 * width)(folder)


def nothing(folder: Path) -> None:
    """Leaves the data good."""


@dataclass(frozen=True)
class Case:
    """What is wrong, and what the one line must say; DATA stands for the data folder."""

    change: Callable[[Path], None]
    parts: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...] = ()


SPLIT = "split_bin.py"
CASES = {
    "label cut": Case(
        cut("train/label.bin", 4), ("DATA/train/dense.bin", "23 samples", "192 bytes", SPLIT)
    ),
    "label cut within a value": Case(
        cut("train/label.bin", 1), ("DATA/train/label.bin", "rows of 4 bytes", "95 bytes", SPLIT)
    ),
    "label empty": Case(
        cut("train/label.bin", 96), ("DATA/train/label.bin", "at least one", "found 0", SPLIT)
    ),
    "dense cut": Case(
        cut("test/dense.bin", 8), ("DATA/test/dense.bin", "12 samples", "96 bytes", "88", SPLIT)
    ),
    "category cut": Case(
        cut("train/category.bin", 3),
        ("DATA/train/category.bin", "24 samples", "192 bytes", "found 189 bytes", SPLIT),
    ),
    "too many labels": Case(
        grow("train/label.bin", 8), ("DATA/train/dense.bin", "26 samples", "192 bytes", SPLIT)
    ),
    "too many ids": Case(
        grow("test/category.bin", 8), ("DATA/test/category.bin", "12 samples", "104", SPLIT)
    ),
    "dense of another width": Case(
        describe("train", num_dense=3), ("DATA/train/dense.bin", "288 bytes", "192", SPLIT)
    ),
    "dense of no width": Case(
        both(describe("train", num_dense=None), cut("train/dense.bin", 4)),
        ("DATA/train/dense.bin", "multiple of 96 bytes", "188 bytes", SPLIT),
    ),
    "unknown type": Case(
        describe("train", dense_raw_type="int64"),
        ("DATA/train/metadata.json", "dense_raw_type", "int32, float32", "'int64'", SPLIT),
    ),
    "ids as float": Case(
        describe("test", category_raw_type="float32"),
        ("DATA/test/metadata.json", "category_raw_type", "expected int32", "float32", "int32"),
    ),
    "missing key": Case(
        describe("train", vocab_sizes=None, dense_log=None),
        ("DATA/train/metadata.json", "missing vocab_sizes, dense_log", SPLIT),
    ),
    "vocabulary of nothing": Case(
        describe("train", vocab_sizes=[5, 0]),
        ("DATA/train/metadata.json", "vocab_sizes", "found 0 for table 1", SPLIT),
    ),
    "malformed metadata": Case(
        write("train/metadata.json", '{"vocab_sizes": [5,\n 3'),
        ("DATA/train/metadata.json", "not valid JSON", SPLIT),
    ),
    "metadata of another kind": Case(
        write("test/metadata.json", "[1, 2]"),
        ("DATA/test/metadata.json", "JSON object", "list", SPLIT),
    ),
    "file missing": Case(
        remove("test/category.bin"), ("DATA/test/category.bin", "no such file", SPLIT)
    ),
    "metadata missing": Case(
        remove("train/metadata.json"), ("DATA/train/metadata.json", "no such file", SPLIT)
    ),
    "test folder missing": Case(remove("test"), ("DATA/test", "no such file", SPLIT)),
    "folder missing": Case(remove(""), ("DATA/train", "no such file", SPLIT)),
    "other columns in test": Case(
        both(describe("test", vocab_sizes=[5]), cut("test/category.bin", 48)),
        ("DATA/test", "2 categorical", "found 2 and 1", "--num_categorical"),
    ),
    "not per category": Case(
        nothing,
        ("DATA/train/", "label.bin"),
        (("use_splited_dataset", True),),
    ),
    "batch beyond the data": Case(
        nothing,
        ("global batch", "at most the 24 training samples", "found 26", "--global_batch_size"),
        (("global_batch_size", 26),),
    ),
    "fewer samples than were written": Case(
        both(seal, drop_last_sample),
        ("DATA/train/", "(checksums.json)", "bytes", "2 faults more", "preprocess.verify"),
    ),
    "other bytes than were written": Case(
        both(both(put("train/dense.bin", 1, 3, 1, 2), seal), put("train/dense.bin", 2, 3, 1, 2)),
        ("DATA/train/dense.bin", "expected CRC-32", "checksums.json", "write the folder again"),
        (("verify_data", "full"),),
    ),
    "id beyond its table in a file read before": Case(
        both(put("train/category.bin", 3, RANK_1_SAMPLE, 1, 2), seal),
        ("DATA/train/category.bin", f"record {RANK_1_SAMPLE}, ", "[0, 3)", "found 3"),
        (("verify_data", "full"),),
    ),
    "tables beyond the memory": Case(
        both(*(describe(part, vocab_sizes=[2**31 - 1, 9]) for part in ("train", "test"))),
        ("memory: expected", "GiB of exchange", "too little", "ranks with as much each"),
        (("embedding_dim", 1024), ("bottom_mlp", (1024,))),
    ),
    "SOK without a GPU": Case(
        nothing, ("--embedding=sok: ", "--embedding=alltoall"), (("embedding", "sok"),)
    ),
    "negative dense": Case(
        put("train/dense.bin", -3, 5, 1, NUM_DENSE),
        ("DATA/train/dense.bin", "record 5, dense column 1", "finite", "ln(-3 + 3)", "dense_log"),
    ),
    "label of 2": Case(
        put("train/label.bin", 2, 9, 0, 1),
        ("DATA/train/label.bin", "record 9", "0 or 1", "found 2", "label_raw_type"),
    ),
    "id beyond its table": Case(
        put("train/category.bin", 3, RANK_1_SAMPLE, 1, 2),
        ("step 1", "[0, 3)", "table 1", "found 3", "vocab_sizes", "--bad_ids"),
    ),
    "negative id": Case(
        put("train/category.bin", -7, 0, 0, 2),
        ("step 0", "sample 0", "[0, 5)", "table 0", "found -7", "--bad_ids"),
    ),
    "id beyond its table in test": Case(
        put("test/category.bin", 8, 11, 0, 2),
        ("evaluation", "[0, 5)", "table 0", "found 8", "--bad_ids"),
    ),
    "loss that is not finite": Case(
        enormous(RANK_1_BLOCK), ("step 1", "not finite", "--amp_dtype=bfloat16"), (("amp", True),)
    ),
}  # fmt: skip
# Those that all ranks can know of together, so that one process can meet them in a row.
TOGETHER = [*list(CASES)[: list(CASES).index("negative dense")], "id beyond its table in test"]


def settings_of(folder: Path, case: Case) -> dict[str, Any]:
    return {**SETTINGS, "data_dir": os.fspath(folder), **dict(case.settings)}


def arguments(settings: dict[str, Any]) -> list[str]:
    def text(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return [f"--{name}={text(value)}" for name, value in settings.items()]


def assert_says(line: str, folder: Path, case: Case) -> None:
    for part in case.parts:
        assert part.replace("DATA", os.fspath(folder)) in line


@pytest.mark.parametrize("name", CASES)
def test_one_rank(name: str, data: Path) -> None:
    CASES[name].change(data)
    with pytest.raises((ValueError, OSError)) as caught:
        program.run(Config.of(**settings_of(data, CASES[name])), open_data, build_model)
    message = str(caught.value)
    assert "\n" not in message
    assert_says(message, data, CASES[name])


@pytest.mark.parametrize("level", ["off", "size", "full"])
def test_data_without_checksums_is_no_error(
    level: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program.run(
        Config.of(**SETTINGS, data_dir=os.fspath(data), verify_data=level), open_data, build_model
    )
    said = [line for line in capsys.readouterr().out.splitlines() if "checksums" in line]
    assert len(said) == (2 if level == "full" else 0), said
    for part, line in zip(("train", "test"), said):
        assert line.startswith(f"{data / part}: no checksums.json")


def test_off_checks_nothing(data: Path) -> None:
    both(seal, drop_last_sample)(data)
    program.run(
        Config.of(**SETTINGS, data_dir=os.fspath(data), verify_data="off"), open_data, build_model
    )


@pytest.mark.parametrize("policy", ["clip", "zero"])
def test_other_policies_for_bad_ids_train_on(policy: str, data: Path) -> None:
    CASES["id beyond its table"].change(data)
    CASES["id beyond its table in test"].change(data)
    program.run(
        Config.of(**SETTINGS, data_dir=os.fspath(data), bad_ids=policy), open_data, build_model
    )


@pytest.mark.parametrize("name", ["id beyond its table", "loss that is not finite"])
def test_one_rank_stops_before_the_update(name: str, data: Path) -> None:
    CASES[name].change(data)
    assert_stopped(worker.stopped(Config.of(**settings_of(data, CASES[name]))), data, CASES[name])


def assert_stopped(found: dict[str, Any], folder: Path, case: Case) -> None:
    assert_says(found["message"], folder, case)
    assert any(found["moved in one step"])
    assert found["moved in one step"][-1], "tables"
    assert all(found["equal to one step"]), found


@pytest.fixture(scope="module")
def met_by_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """All the cases that ranks know of together, met by two ranks in one start."""
    folder = tmp_path_factory.mktemp("ranks")
    plan: dict[str, Any] = {"cases": {}}
    for name in [*TOGETHER, "loss that is not finite", "good"]:
        write_random_split(folder / name / "train", TRAIN)
        write_random_split(folder / name / "test", TEST)
        case = CASES.get(name, Case(nothing, ()))
        case.change(folder / name)
        plan["cases"][name] = arguments(settings_of(folder / name, case))
    plan["stopped"] = plan["cases"].pop("loss that is not finite")
    undivided = {**SETTINGS, "data_dir": os.fspath(folder / "good"), "global_batch_size": 7}
    plan["cases"]["undivided"] = arguments(undivided)
    (folder / "cases.json").write_text(json.dumps(plan))
    ended = horovodrun(
        2,
        "python3",
        "-m",
        "tests.multi_rank.workers.failures",
        folder / "cases.json",
        folder,
        time_limit=150,
    )
    assert ended.code == 0, ended.output
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", TOGETHER)
def test_two_ranks_both_say_it(name: str, met_by_two_ranks: tuple[Path, list[Any]]) -> None:
    folder, ranks = met_by_two_ranks
    for found in ranks:
        code, errors = found[name]
        assert code == 1
        assert len(errors.splitlines()) == 1, errors
        assert errors.startswith("error: ")
    if "test" in name and "id" in name:
        # One rank read it; the other points there.
        assert_says(ranks[1][name][1] + ranks[0][name][1], folder / name, CASES[name])
    else:
        assert ranks[0][name] == ranks[1][name]
        assert_says(ranks[0][name][1], folder / name, CASES[name])


def test_two_ranks_do_not_divide_the_batch(met_by_two_ranks: tuple[Path, list[Any]]) -> None:
    for found in met_by_two_ranks[1]:
        code, errors = found["undivided"]
        assert code == 1
        for part in ("global batch", "multiple of the 2 ranks", "found 7", "--global_batch_size=8"):
            assert part in errors


def test_two_ranks_go_on_with_good_data(met_by_two_ranks: tuple[Path, list[Any]]) -> None:
    """The failures before it have left no rank out of step with the other."""
    assert [found["good"] for found in met_by_two_ranks[1]] == [[0, ""], [0, ""]]


def test_two_ranks_stop_before_the_update(met_by_two_ranks: tuple[Path, list[Any]]) -> None:
    folder, ranks = met_by_two_ranks
    name = "loss that is not finite"
    for found in ranks:
        assert_stopped(found["stopped"], folder / name, CASES[name])


def train_on_two_ranks(folder: Path, case: Case) -> Ended:
    case.change(folder)
    command = ["python3", "main.py", *arguments(settings_of(folder, case))]
    ended = horovodrun(2, *command, time_limit=TIME_LIMIT)
    assert ended.code != 0
    return ended


def errors(ended: Ended) -> list[tuple[str, str]]:
    """(rank, line) of each error line that main.py wrote."""
    return re.findall(r"^\[(\d)\]<stderr>:error: (.*)$", ended.output, re.MULTILINE)


def test_horovodrun_truncated_file(data: Path) -> None:
    case = CASES["category cut"]
    found = errors(train_on_two_ranks(data, case))
    assert sorted(rank for rank, _ in found) == ["0", "1"], "once a rank"
    for _, line in found:
        assert_says(line, data, case)


def test_horovodrun_bad_id_in_the_block_of_one_rank(data: Path) -> None:
    case = CASES["id beyond its table"]
    ended = train_on_two_ranks(data, case)
    found = dict(errors(ended))
    assert_says(found["1"], data, case)
    assert "rank 1, sample 2 of its batch" in found["1"]
    assert "step 1" in found["0"]
    assert "another rank names the sample" in found["0"]


def test_horovodrun_loss_not_finite_on_one_rank(data: Path) -> None:
    case = CASES["loss that is not finite"]
    ended = train_on_two_ranks(data, case)
    found = errors(ended)
    assert sorted(rank for rank, _ in found) == ["0", "1"], ended.output
    for _, line in found:
        assert_says(line, data, case)


def test_horovodrun_bad_label_that_only_one_rank_reads(data: Path) -> None:
    """The other rank waits for it in an exchange, and must not wait forever."""
    case = Case(
        put("train/label.bin", 2, RANK_1_SAMPLE, 0, 1),
        ("DATA/train/label.bin", f"record {RANK_1_SAMPLE}", "0 or 1", "found 2", "label_raw_type"),
    )
    ended = train_on_two_ranks(data, case)
    assert_says(dict(errors(ended))["1"], data, case)


def test_one_rank_needs_no_horovod(data: Path, tmp_path: Path) -> None:
    (tmp_path / "hook").mkdir()
    env = without_modules(tmp_path / "hook", "horovod")
    blocked = run(["python3", "-c", "import horovod.tensorflow"], time_limit=TIME_LIMIT, env=env)
    assert blocked.code != 0
    assert "No module named 'horovod' (blocked)" in blocked.output

    command = ["python3", "main.py", *arguments({**SETTINGS, "data_dir": data})]
    alone = run(command, time_limit=TIME_LIMIT, env=env)
    assert alone.code == 0, alone.output

    several = run(command, time_limit=TIME_LIMIT, env={**env, "HOROVOD_SIZE": "2"})
    assert several.code == 1
    lines = [line for line in several.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, several.output
    assert "2 processes were started, but Horovod cannot be imported" in lines[0]
    assert "make setup" in lines[0]
