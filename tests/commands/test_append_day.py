"""A new day's logs behind an old dictionary: ids, counts, files, refusals and kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from preprocess.__main__ import main
from preprocess.outputs import Journal
from tests.support.spark_session import (  # noqa: F401
    ENGINES,
    ON_SPARK,
    contents,
    needs_spark,
    session,
    small_pieces,
)

SEED = 17
# .ci/run says what is left out of the other profile.
pytestmark = [pytest.mark.one_profile, pytest.mark.usefixtures("session")]
SLOW_ON_SPARK = ["polars", pytest.param("spark", marks=(*ON_SPARK, pytest.mark.slow))]
SHAPE = ["--num_dense=1", "--num_categorical=1", "--test_fraction=0"]
THREE = ["--num_dense=2", "--num_categorical=3", "--test_fraction=0.2"]


def write_log(path: Path, values: list[str], label: int = 1) -> str:
    """Writes a log of one dense and one categorical column."""
    path.write_text("".join(f"{label}\t1\t{value}\n" for value in values))
    return str(path)


def records(folder: Path, columns: int, part: str = "train") -> np.ndarray:
    return np.fromfile(folder / f"{part}_data.bin", "<i4").reshape(-1, columns)


def dictionary(folder: Path, table: int = 0) -> list[tuple[int, int, int]]:
    frame = pl.read_parquet(folder / f"dictionary/table_{table}.parquet")
    return list(frame.select("value", "id", "count").iter_rows())


def describe(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "records.json").read_text()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rules", ["dlrm", "spark"])
def test_hand_worked_days(engine: str, rules: str, tmp_path: Path) -> None:
    """Two values that day 1 lacks get ids; one of them is too rare."""
    flags = [f"--rules={rules}", f"--engine={engine}", "--frequency_threshold=2", *SHAPE]
    first = write_log(tmp_path / "first.tsv", ["7", "8", "8", "9", "7", "8", "0", "0"])
    second = write_log(tmp_path / "second.tsv", ["c", "b", "", "8", "b", "c", "d", "b", "0"])
    old, new = tmp_path / "old", tmp_path / "new"
    assert main([first, f"--output={old}", *flags]) == 0
    assert main([second, f"--output={new}", f"--append_day={old}", *flags]) == 0
    ids = [row[2] for row in records(new, 3).tolist()]
    if rules == "dlrm":  # by appearance, and missing is the value 0
        assert dictionary(old) == [(7, 1, 2), (8, 2, 3), (0, 3, 2)]
        assert dictionary(new) == [(7, 1, 2), (8, 2, 4), (0, 3, 4), (12, 4, 2), (11, 5, 3)]
        assert ids == [4, 5, 3, 2, 5, 4, 0, 5, 3]
    else:  # by count, then value; missing is id 0
        assert dictionary(old) == [(8, 1, 3), (0, 2, 2), (7, 3, 2)]
        assert dictionary(new) == [(8, 1, 4), (0, 2, 3), (7, 3, 2), (11, 4, 3), (12, 5, 2)]
        assert ids == [5, 4, 0, 1, 4, 5, 0, 4, 2]
    content = describe(new)
    assert (content["vocab_sizes"], content["unknown_categories"]) == ([6], [1])
    assert content["distinct_values"] == [5]
    assert [day["files"] for day in content["earlier_days"]] == [["first.tsv"]]
    # A third day goes on from the second, and may bring nothing new.
    third = write_log(tmp_path / "third.tsv", ["b", "e"])
    assert main([third, f"--output={tmp_path / '3'}", f"--append_day={new}", *flags]) == 0
    content = describe(tmp_path / "3")
    assert [day["files"] for day in content["earlier_days"]] == [["first.tsv"], ["second.tsv"]]
    assert content["vocab_sizes"] == [6]
    added = [count for *_, count in dictionary(tmp_path / "3")]
    assert sum(added) == sum(count for *_, count in dictionary(new)) + 1


def three_days(folder: Path, rows: int) -> list[str]:
    """Logs in which ids come and go; some days lack a table's values altogether."""
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    paths = []
    for day in range(3):
        values = generator.zipf(1.3, (rows, 3)) % 500 + 150 * day
        values[:, 2] = 3 if day == 1 else values[:, 2]
        lines = []
        for row in values.tolist():
            fields = ["" if generator.random() < 0.05 else f"{value:x}" for value in row]
            if day == 0:
                fields[2] = ""
            dense = generator.integers(-3, 50, 2).tolist()
            label = int(generator.integers(0, 2))
            lines.append("\t".join(map(str, (label, *dense, *fields))))
        paths.append(folder / f"day_{day}.tsv")
        paths[-1].write_text("\n".join(lines) + "\n")
    return list(map(str, paths))


@pytest.mark.parametrize("rules", ["dlrm", "mlperf"])
def test_appended_days_are_all_days_at_once(rules: str, tmp_path: Path) -> None:
    """Without a threshold, ids by appearance do not depend on where one day ends."""
    days = three_days(tmp_path, 400)
    flags = [f"--rules={rules}", "--max_table_rows=700", *THREE, "--test_fraction=0"]
    at_once = tmp_path / "at once"
    assert main([*days, f"--output={at_once}", *flags]) == 0
    parts, append = [], list[str]()
    for number, day in enumerate(days):
        output = tmp_path / f"after {number}"
        assert main([day, f"--output={output}", *flags, *append]) == 0
        parts.append(records(output, 6))
        append = [f"--append_day={output}"]
    np.testing.assert_array_equal(np.concatenate(parts), records(at_once, 6))
    assert contents(output / "dictionary") == contents(at_once / "dictionary")
    assert describe(output)["vocab_sizes"] == describe(at_once)["vocab_sizes"]


SCHEMA: dict[str, Any] = {
    "format": "csv",
    "header": True,
    "dense_type": "float32",
    "columns": ["label", "x", "count", "site", "user", "tags"],
    "label": "label",
    "dense": [{"name": "x", "transform": "standardise"}],
    "categorical": [
        {"name": "site", "threshold": 2},
        {"name": "hashed", "column": "site", "type": "text", "modulo": 40},
        "user",
        {"name": "tags", "separator": "|", "max_ids": 3},
    ],
}


def run_schema(schema: dict[str, Any], log: str, output: Path, *flags: str) -> int:
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(schema))
    return main([
        log, "--rules=generic", f"--schema={file}", "--columns", f"--output={output}", *flags,
    ])  # fmt: skip


def text_log(path: Path, seed: int, first_user: int) -> str:
    generator = np.random.default_rng(seed)
    sites = generator.zipf(1.5, 300) % 60 + first_user // 2
    lines = [
        f"{generator.integers(0, 2)},{generator.normal():.4f},{site % 7},s{site},u{user},"
        f"t{user % 40}|t{site}"
        for site, user in zip(sites, generator.integers(first_user, first_user + 80, 300))
    ]
    path.write_text("label,x,count,site,user,tags\n" + "\n".join(lines) + "\n")
    return str(path)


def known_ids(folder: Path, table: int) -> dict[str, int]:
    frame = pl.read_parquet(folder / f"dictionary/table_{table}.parquet")
    return dict(frame.select("text", "id").iter_rows())


def test_texts_and_statistics_of_columns(tmp_path: Path) -> None:
    """Old texts keep ids, new ones come behind them, and the old day's mean is used."""
    logs = [text_log(tmp_path / f"{day}.csv", SEED + day, 40 * day) for day in range(2)]
    old, new = tmp_path / "old", tmp_path / "new"
    assert run_schema(SCHEMA, logs[0], old) == 0
    assert run_schema(SCHEMA, logs[1], new, f"--append_day={old}") == 0
    for table in (0, 2, 3):
        before, after = (
            pl.read_parquet(folder / f"dictionary/table_{table}.parquet") for folder in (old, new)
        )
        assert after["text"][: len(before)].to_list() == before["text"].to_list()
        assert after["text"].n_unique() == len(after) > len(before)
        assert after["id"].to_list() == list(range(1, 1 + len(after)))
        if table == 2:
            seen = pl.concat([pl.read_csv(log) for log in logs])["user"]
            totals = dict(seen.value_counts().iter_rows())
            assert dict(after.select("text", "count").iter_rows()) == totals
    statistics = [(folder / "dictionary/columns.json").read_text() for folder in (old, new)]
    assert statistics[0] == statistics[1]
    day = pl.read_csv(logs[1])
    ids = np.fromfile(new / "train/category.bin", "<i4").reshape(-1, 3)[:, 2].tolist()
    assert ids == [known_ids(new, 2)[user] for user in day["user"][: len(ids)]]
    tags = "|".join(day["tags"][: len(ids)]).split("|")
    bags = np.fromfile(new / "train/bag_3_ids.bin", "<i4").tolist()
    assert bags == [known_ids(new, 3).get(tag, 0) for tag in tags]


@pytest.mark.slow
@pytest.mark.spark
@needs_spark
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["dlrm", "spark", "texts"])
def test_both_engines_append_the_same_bytes(kind: str, tmp_path: Path) -> None:
    if kind == "texts":
        logs = [text_log(tmp_path / f"{day}.csv", SEED + day, 40 * day) for day in range(3)]
    else:
        logs = three_days(tmp_path, 500)
    threshold = {"dlrm": [], "spark": ["--frequency_threshold=3", "--shuffle=2"]}
    found: dict[str, list[dict[str, bytes]]] = {}
    for engine in ("polars", "spark"):
        append: list[str] = []
        for number, log in enumerate(logs):
            output = tmp_path / f"{engine}-{number}"
            flags = [f"--engine={engine}", *append]
            if kind == "texts":
                assert run_schema(SCHEMA, log, output, *flags) == 0
            else:
                flags += [f"--rules={kind}", *threshold[kind], *THREE]
                assert main([log, f"--output={output}", *flags]) == 0
            append = [f"--append_day={output}"]
            found.setdefault(engine, []).append(contents(output))
    for one, other in zip(found["polars"], found["spark"]):
        assert one.keys() == other.keys()
        assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize("engine", SLOW_ON_SPARK)
def test_what_is_refused(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_log(tmp_path / "first.tsv", ["7", "8", "8", ""])
    again = write_log(tmp_path / "renamed.tsv", ["7", "8", "8", ""])
    other = write_log(tmp_path / "other.tsv", ["7", "9"])
    old, new = tmp_path / "old", tmp_path / "new"
    common = [f"--engine={engine}", *SHAPE]
    assert main([first, f"--output={old}", "--rules=dlrm", *common]) == 0
    (tmp_path / "empty").mkdir()
    before = contents(old)
    append = f"--append_day={old}"
    cases = [
        (again, ["--rules=dlrm", append], "found those of first.tsv; give the logs of a new day"),
        (other, ["--rules=mlperf", append], "expected one made with rules mlperf, found dlrm"),
        (other, ["--rules=dlrm", append, "--frequency_threshold=2"], "frequency_threshold 2"),
        (other, ["--rules=dlrm", append, "--max_table_rows=9"], "max_table_rows 9, found None"),
        (other, ["--rules=dlrm", append, f"--dictionary={old}"], "found both"),
        (other, ["--rules=dlrm", f"--append_day={new}"], "expected another folder than --output"),
        (other, ["--rules=dlrm", f"--append_day={tmp_path / 'empty'}"], "output folder of an earl"),
        (other, ["--rules=dlrm", append, "--num_dense=0", "--num_categorical=2"], "2 tables, fou"),
    ]  # fmt: skip
    for log, flags, message in cases:
        capsys.readouterr()
        assert main([log, f"--output={new}", *common, *flags]) == 1, flags
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1, error
        assert not list(tmp_path.glob("new/*"))
    assert contents(old) == before


def test_another_threshold_of_a_table_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a user's schema, `records.json` does not say each table's threshold."""
    kinds: list[dict[str, Any]] = [
        {"name": "site", "type": "text"},
        {"name": "user", "type": "text", "modulo": 50},
    ]
    schema = {**SCHEMA, "missing": "value", "format": "csv", "categorical": kinds}
    del schema["dense_type"]
    schema["dense"] = ["count"]
    logs = [text_log(tmp_path / f"{day}.csv", SEED + day, 40 * day) for day in range(2)]
    old, append = tmp_path / "old", f"--append_day={tmp_path / 'old'}"
    assert run_schema(schema, logs[0], old) == 0
    schema["categorical"] = [{**kinds[0], "threshold": 2}, kinds[1]]
    assert run_schema(schema, logs[1], tmp_path / "new", append) == 1
    assert "expected 1 as the first id of a value in table 0, found 0" in capsys.readouterr().err
    schema["categorical"] = [kinds[0], {**kinds[1], "modulo": 60}]
    assert run_schema(schema, logs[1], tmp_path / "new", append) == 1
    assert "expected one made with moduli [None, 60], found [None, 50]" in capsys.readouterr().err


class _Ended(BaseException):
    pass


def test_a_killed_run_appends_the_day_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies right after each durable state in turn; counts are not added twice."""
    days = three_days(tmp_path, 30_000)
    flags = ["--rules=spark", "--frequency_threshold=2", *THREE, "--part_mib=1", "--block_mib=1"]
    old = tmp_path / "old"
    assert main([days[0], f"--output={old}", *flags]) == 0
    command = [*days[1:], *flags, f"--append_day={old}"]
    assert main([*command, f"--output={tmp_path / 'whole'}"]) == 0
    save, states = Journal.save, 0

    def save_and_die(journal: Journal, state: dict[str, object]) -> None:
        nonlocal states
        save(journal, state)
        states += 1
        raise _Ended

    while True:
        before = states
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "save", save_and_die)
            try:
                assert main([*command, f"--output={tmp_path / 'killed'}"]) == 0
            except _Ended:
                continue
        assert states == before
        break
    assert states > 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
