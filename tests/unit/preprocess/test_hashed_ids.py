"""Ids without a dictionary, against XXH64 and the rules in plain Python; both engines."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from dlrm.checkpoint.directory import finished
from dlrm.formats.file_names import bag_ids
from preprocess import guess, verify
from preprocess.__main__ import main
from preprocess.engine_polars import learn as polars_learn
from preprocess.engine_polars.text_hashes import hashed_ids
from preprocess.outputs import Journal
from preprocess.user_schema import parse_user_schema
from tests.support.jobs import weights
from tests.support.processes import run
from tests.support.spark_session import ON_SPARK, session  # noqa: F401

SEED = 67
ALL = 2**31 - 1
FORMS = ("csv", "jsonl", "parquet")
SLOW_SPARK = (*ON_SPARK, pytest.mark.slow)
_PRIMES = (
    *(0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63),
    0x27D4EB2F165667C5,
)
_MASK = 2**64 - 1
SCHEMA: dict[str, Any] = {
    "format": "csv",
    "header": True,
    "dense_type": "float32",
    "columns": ["y", "x", "user", "site", "code", "tags", "marks"],
    "label": "y",
    "dense": ["x"],
    "categorical": [
        {"name": "user", "type": "integer", "ids": "hash", "modulo": ALL},
        {"name": "site", "ids": "hash", "modulo": ALL},
        {"name": "few", "column": "site", "ids": "hash", "modulo": 7},
        {"name": "crc", "column": "site", "type": "text", "ids": "hash", "modulo": ALL},
        {"name": "code", "type": "hex", "ids": "hash", "modulo": 1_000_003},
        {"name": "tags", "separator": "|", "max_ids": 3, "ids": "hash", "modulo": ALL},
        {"name": "marks", "type": "integer", "separator": "|", "max_ids": 2, "ids": "hash",
         "modulo": 50},
    ],
    "split": {"by": "fraction", "test": 0.1},
}  # fmt: skip


def xxh64(data: bytes, seed: int) -> int:
    """XXH64 as its specification has it, of whole numbers without bounds."""
    first, second, third, fourth, fifth = _PRIMES

    def rotated(number: int, bits: int) -> int:
        return (number << bits | number >> (64 - bits)) & _MASK

    def turned(lane: int, number: int) -> int:
        return rotated((lane + number * second) & _MASK, 31) * first & _MASK

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], "little")

    at = 0
    if len(data) >= 32:
        lanes = [seed + first + second, seed + second, seed, seed - first]
        while at + 32 <= len(data):
            lanes = [turned(lane, number(at + 8 * i, 8)) for i, lane in enumerate(lanes)]
            at += 32
        found = sum(rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18))) & _MASK
        for lane in lanes:
            found = ((found ^ turned(0, lane)) * first + fourth) & _MASK
    else:
        found = seed + fifth
    found = (found + len(data)) & _MASK
    while at + 8 <= len(data):
        found = (rotated(found ^ turned(0, number(at, 8)), 27) * first + fourth) & _MASK
        at += 8
    if at + 4 <= len(data):
        mixed = rotated(found ^ (number(at, 4) * first & _MASK), 23)
        found = (mixed * second + third) & _MASK
        at += 4
    for byte in data[at:]:
        found = rotated(found ^ (byte * fifth & _MASK), 11) * first & _MASK
    for shift, factor in ((33, second), (29, third)):
        found = (found ^ found >> shift) * factor & _MASK
    return found ^ found >> 32


def hashed(text: str, modulo: int = ALL) -> int:
    """The id of a text; 0 of a missing one."""
    return xxh64(text.encode(), 42) % modulo if text else 0


def test_the_hash_is_xxh64() -> None:
    """The reference has the published digests, and the compiled one those of the reference."""
    assert xxh64(b"", 0) == 0xEF46DB3751D8E999
    assert xxh64(b"abc", 0) == 0x44BC2CF5AD770999
    assert xxh64(b"Nobody inspects the spammish repetition", 0) == 0xFBCEA83C8A378BF1
    print(f"seed {SEED}")
    dice = np.random.default_rng(SEED)
    letters = np.array(list("aé例z|0"))
    texts = ["".join(dice.choice(letters, size)) for size in range(1, 140)]
    for modulo in (1, 7, ALL):
        found = hashed_ids(pl.Series("t", ["", *texts, ""]), modulo)
        assert found.to_list() == [None, *(hashed(text, modulo) for text in texts), None]
    assert hashed_ids(pl.Series("t", [], pl.String), 7).to_list() == []


def _log(rows: int) -> pl.DataFrame:
    """A log of texts of many lengths, numbers of 32 bits, and gaps in each column."""
    print(f"seed {SEED}")
    dice = np.random.default_rng(SEED)

    def gaps(values: list[Any]) -> list[Any]:
        return [None if dice.random() < 0.1 else value for value in values]

    words = [f"sité {n} 例 " + "long " * int(n % 9) + "." for n in range(300)]
    return pl.DataFrame(
        {
            "y": dice.integers(0, 2, rows),
            "x": dice.normal(size=rows),
            "user": gaps(dice.integers(0, 2**32, rows).tolist()),
            "site": gaps(dice.choice(words, rows).tolist()),
            "code": gaps([f"{n:x}" for n in dice.integers(0, 2**32, rows)]),
            "tags": gaps([dice.choice(words, n).tolist() for n in dice.integers(0, 5, rows)]),
            "marks": gaps([dice.integers(0, 2**32, n).tolist() for n in dice.integers(0, 4, rows)]),
        }
    )


def _joined(log: pl.DataFrame) -> pl.DataFrame:
    lists = (pl.col(name).cast(pl.List(pl.String)).list.join("|") for name in ("tags", "marks"))
    return log.with_columns(lists)


def _run(folder: Path, log: Path, schema: dict[str, Any], *flags: str) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema), encoding="utf-8")
    words = ["--rules=generic", f"--schema={folder / 'schema.yaml'}", f"--output={folder / 'out'}"]
    return main([str(log), *words, *flags])


def _bytes(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    files = {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    files["records.json"] = b"".join(
        line for line in files["records.json"].splitlines() if b"log." not in line
    )
    return files


def _check(log: pl.DataFrame, out: Path) -> None:
    """Compares the ids of a result with plain Python."""
    singles, tags, marks = [], [], []
    for user, site, code, some, numbers in log.select(log.columns[2:]).iter_rows():
        singles.append(
            [
                (user or 0) % ALL,
                hashed(site or ""),
                hashed(site or "", 7),
                zlib.crc32((site or "").encode()) % ALL,
                int(code or "0", 16) % 1_000_003,
            ]
        )
        tags.append([hashed(text) for text in (some or [])[:3]])
        marks.append([number % 50 for number in (numbers or [])[:2]])
    rows, start = 0, 0
    for part in ("train", "test"):
        metadata = json.loads((out / part / "metadata.json").read_text())
        assert metadata["vocab_sizes"] == [ALL, ALL, 7, ALL, 1_000_003, ALL, 50]
        found = np.fromfile(out / part / "category.bin", "<i4").reshape(-1, 5)
        rows += len(found)
        np.testing.assert_array_equal(found, singles[start:rows])
        for table, bags in ((5, tags), (6, marks)):
            ids = np.fromfile(out / part / bag_ids(table), "<i4")
            assert ids.tolist() == [n for bag in bags[start:rows] for n in bag]
        start = rows
    assert rows == log.height
    assert max(map(max, singles)) > 2**30


@pytest.mark.parametrize(
    ("engine", "forms"),
    [
        ("polars", FORMS),
        pytest.param("spark", FORMS[:1], marks=ON_SPARK),
        pytest.param("spark", FORMS, marks=SLOW_SPARK),
    ],
)
def test_ids_against_plain_python(
    engine: str, forms: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """CSV, JSON lines and Parquet; no dictionary is written but the statistics."""
    if engine == "spark":
        request.getfixturevalue("session")
    log = _log(400)
    found = {}
    for form in forms:
        path, folder = tmp_path / f"log.{form}", tmp_path / form
        change: dict[str, Any] = {"format": form}
        if form == "csv":
            _joined(log).write_csv(path)
        else:
            log.write_ndjson(path) if form == "jsonl" else log.write_parquet(path)
            change["categorical"] = [
                {key: value for key, value in column.items() if key != "separator"}
                for column in SCHEMA["categorical"]
            ]
            change["header"] = False
        flags = ("--columns", f"--engine={engine}", "--block_mib=1")
        assert _run(folder, path, {**SCHEMA, **change}, *flags) == 0
        _check(log, folder / "out")
        files = [path.name for path in (folder / "out" / "dictionary").iterdir()]
        assert [name for name in files if not name.startswith(".")] == ["columns.json"]
        found[form] = _bytes(folder)
    assert all(files == found["csv"] for files in found.values())
    if engine == "spark":
        assert _run(tmp_path / "csv", tmp_path / "log.csv", SCHEMA, "--columns", "--restart") == 0
        assert _bytes(tmp_path / "csv") == found["csv"]
    assert verify.main([str(tmp_path / "csv" / "out")]) == 0


INTEGERS: dict[str, Any] = {
    "columns": ["y", "n", "a", "b", "c"],
    "label": "y",
    "dense": ["n"],
    "categorical": [
        {"name": "a", "ids": "hash", "modulo": ALL},
        "b",
        {"name": "c", "type": "text", "ids": "hash", "modulo": 1000},
    ],
    "missing": "special",
    "threshold": 2,
    "split": {"by": "fraction", "test": 0},
}


@pytest.mark.parametrize("engine", ["polars", pytest.param("spark", marks=SLOW_SPARK)])
def test_beside_a_dictionary_and_in_later_logs(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A schema of integers: record files; then its dictionary, and the next day's."""
    if engine == "spark":
        request.getfixturevalue("session")
    log = tmp_path / "log.tsv"
    log.write_text("1\t5\tffffffff\tb\tc\n0\t6\t\tb\t\n1\t\t7fffffff\td\tc\n0\t1\t3\t\tz\n")
    c, z = (zlib.crc32(text.encode()) % 1000 for text in ("c", "z"))
    first = [[(2**32 - 1) % ALL, 1, c], [0, 1, 0], [0, 0, c], [3, 0, z]]
    assert _run(tmp_path / "one", log, INTEGERS, f"--engine={engine}") == 0
    records = np.fromfile(tmp_path / "one" / "out" / "train_data.bin", "<i4").reshape(-1, 5)
    assert records[:, 2:].tolist() == first
    described = json.loads((tmp_path / "one" / "out" / "records.json").read_text())
    assert described["vocab_sizes"] == [ALL, 2, 1000]
    assert (described["hashed"], described["distinct_values"]) == ([0, 2], [0, 2, 0])
    assert described["unknown_categories"] == [0, 1, 0]
    assert verify.main([str(tmp_path / "one" / "out")]) == 0
    files = {path.name for path in (tmp_path / "one" / "out" / "dictionary").glob("*.parquet")}
    assert files == {"table_1.parquet"}
    later = tmp_path / "later.tsv"
    later.write_text("1\t5\t9\te\tz\n0\t6\t9\te\tq\n")
    q = zlib.crc32(b"q") % 1000
    for flag, ids, size in (("append_day", 2, 3), ("dictionary", 0, 2)):
        folder = tmp_path / flag
        old = f"--{flag}={tmp_path / 'one' / 'out'}"
        assert _run(folder, later, INTEGERS, old, f"--engine={engine}") == 0
        records = np.fromfile(folder / "out" / "train_data.bin", "<i4").reshape(-1, 5)
        assert records[:, 2:].tolist() == [[9, ids, z], [9, ids, q]]
        described = json.loads((folder / "out" / "records.json").read_text())
        assert described["vocab_sizes"] == [ALL, size, 1000]


@pytest.mark.parametrize("engine", ["polars", pytest.param("spark", marks=SLOW_SPARK)])
def test_without_any_dictionary_a_day_follows_the_other(
    engine: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """There is nothing that could grow, and nothing by which a day could be known again."""
    if engine == "spark":
        request.getfixturevalue("session")
    log = tmp_path / "log.tsv"
    log.write_text("1\t5\tff\n0\t6\t\n")
    schema = {**INTEGERS, "columns": ["y", "n", "a"], "categorical": [INTEGERS["categorical"][0]]}
    assert _run(tmp_path / "one", log, schema, f"--engine={engine}") == 1
    assert "--frequency_threshold: expected 0 where every column" in capsys.readouterr().err
    schema.pop("threshold")
    numbered = {**schema, "categorical": ["a"]}
    assert _run(tmp_path / "one", log, numbered, f"--engine={engine}") == 0
    assert (tmp_path / "one" / "out" / "dictionary").exists()
    assert _run(tmp_path / "one", log, schema, f"--engine={engine}") == 0
    assert not (tmp_path / "one" / "out" / "dictionary").exists()
    for flag in ("append_day", "dictionary"):
        old = f"--{flag}={tmp_path / 'one' / 'out'}"
        assert _run(tmp_path / flag, log, schema, old, f"--engine={engine}") == 0
        records = np.fromfile(tmp_path / flag / "out" / "train_data.bin", "<i4").reshape(-1, 3)
        assert records[:, 2].tolist() == [255, 0]
    other = {**schema, "categorical": [{"name": "a", "modulo": ALL}]}
    assert _run(tmp_path / "other", log, other, old, f"--engine={engine}") == 1
    assert "expected one made with hashed None, found [0]" in capsys.readouterr().err


class _Died(BaseException):
    pass


def test_a_killed_run_goes_on_and_learns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes beside a dictionary are not counted again; without one there is no pass to learn."""
    log = tmp_path / "log.csv"
    _joined(_log(6_000)).write_csv(log)
    flags = ("--columns", "--part_mib=1", "--block_mib=1", "--shuffle=1")
    mixed = {**SCHEMA, "categorical": [*SCHEMA["categorical"], {"name": "own", "column": "site"}]}
    save = Journal.save

    def save_and_die(journal: Journal, state: dict[str, object]) -> None:
        save(journal, state)
        raise _Died

    for name, schema in (("mixed", mixed), ("hashes", SCHEMA)):
        if name == "hashes":
            monkeypatch.delattr(polars_learn, "read_blocks")
        folder = tmp_path / name
        assert _run(folder, log, schema, *flags) == 0
        whole = _bytes(folder)
        deaths = 0
        while True:
            try:
                with monkeypatch.context() as patch:
                    patch.setattr(Journal, "save", save_and_die)
                    assert _run(tmp_path / f"{name}-killed", log, schema, *flags) == 0
                break
            except _Died:
                deaths += 1
        assert deaths > 2
        assert _bytes(tmp_path / f"{name}-killed") == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modulo": None}, "modulo: expected beside ids: hash, found none; give the number of"),
        ({"threshold": 3}, "threshold: expected without ids: hash, which counts nothing, found 3"),
        ({"ids": "hashed"}, "column site: ids: expected one of dictionary, hash, found 'hashed'"),
        ({"type": "hour"}, "ids: expected dictionary with type hour, found hash; remove"),
        ({"modulo": 2**31}, "modulo: expected an integer from 1 to 2147483647, found 2147483648"),
        ({"modulo": "many"}, "modulo: expected an integer from 1 to 2147483647, found 'many'"),
        ({"ids": "dictionary"}, "and ids: hash takes one of any text"),
    ],
)
def test_a_wrong_key_is_named(change: dict[str, Any], message: str) -> None:
    column = {"name": "site", "ids": "hash", "modulo": 9, **change}
    column = {key: value for key, value in column.items() if value is not None}
    with pytest.raises(ValueError, match="expected") as caught:
        parse_user_schema({**SCHEMA, "categorical": [column]})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_guess_names_the_rule(tmp_path: Path) -> None:
    """The guessed schema says how a column does without a dictionary, and that is valid."""
    log = tmp_path / "log.csv"
    log.write_text("y,x,c\n" + "".join(f"{n % 2},{n},t{n}\n" for n in range(9)))
    assert guess.main([str(log), f"--output={tmp_path / 's.yaml'}"]) == 0
    text = (tmp_path / "s.yaml").read_text()
    assert "ids: hash, modulo: 2147483647" in text
    content = yaml.safe_load(text)
    content["categorical"] = [{"name": "c", "ids": "hash", "modulo": 2147483647}]
    assert parse_user_schema(content).rules.hashed == (0,)


def test_training_on_a_raw_log_without_a_dictionary(tmp_path: Path) -> None:
    """The rows of the checkpoint are those of the hashes that occurred in the batches."""
    log = tmp_path / "log.csv"
    _joined(_log(400)).write_csv(log)
    assert _run(tmp_path, log, SCHEMA, "--columns") == 0
    out, checkpoints = tmp_path / "out", tmp_path / "checkpoints"
    words = ["main.py", f"--data_dir={out}", f"--checkpoint_dir={checkpoints}"]
    words += ["--embedding=dynamic", "--global_batch_size=36", "--embedding_dim=4"]
    words += ["--bottom_mlp=8,4", "--top_mlp=8,1", "--eval_in_last", "--warmup_steps=0"]
    ended = run([sys.executable, *words], time_limit=120)
    assert ended.code == 0, ended.output
    saved = weights(finished(checkpoints)[-1])
    sizes = [ALL, ALL, 7, ALL, 1_000_003, ALL, 50]
    starts = np.cumsum([0, *sizes[:-1]])
    singles = np.fromfile(out / "train" / "category.bin", "<i4").reshape(-1, 5)
    keys = [*(singles + starts[:5]).reshape(-1)]
    for table in (5, 6):
        keys += [*(np.fromfile(out / "train" / bag_ids(table), "<i4") + starts[table])]
    found = saved["tables-00000-of-00001.safetensors keys"]
    np.testing.assert_array_equal(np.sort(found), np.unique(keys))
