"""Bags of ids from raw logs: both engines write the same bytes, and a killed run goes on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from preprocess.__main__ import main
from preprocess.outputs import Journal
from tests.support.spark_session import (  # noqa: F401
    contents,
    needs_spark,
    session,
    small_pieces,
)

# .ci/run says what is left out of the other profile.
pytestmark = pytest.mark.one_profile

SEED = 43
BAGS: list[Any] = [
    {"name": "genres", "max_ids": 4, "pooling": "mean", "weights": "shares", "threshold": 3},
    "site",
    {"name": "pages", "max_ids": 40, "type": "integer", "modulo": 600},
    {"name": "hashed", "column": "genres", "max_ids": 9, "type": "text"},
    {"name": "marks", "max_ids": 2, "type": "hex", "weights": "shares"},
]
SCHEMA: dict[str, Any] = {
    "format": "parquet",
    "dense_type": "float32",
    "absent": ["NA"],
    "label": "label",
    "dense": [{"name": "number", "transform": "standardise"}],
    "categorical": BAGS,
}


def _log(rows: int, seed: int) -> pl.DataFrame:
    """Bags of none to nine ids, some without a value, in many scripts; as many marks and shares."""
    dice = random.Random(seed)
    found = []
    for number in range(rows):
        size = dice.choice([0, 1, 1, 2, 3, 9])
        names = [f'né 例\\" {int(dice.expovariate(0.1))}' for _ in range(size)]
        names = [name if dice.random() < 0.9 else dice.choice(["", "NA"]) for name in names]
        found.append(
            {
                "label": dice.randrange(2),
                "number": number,
                "genres": names,
                "shares": [dice.uniform(-1, 1) * 10 ** dice.randrange(-30, 9) for _ in names],
                "marks": [f"{dice.randrange(2**32):x}" for _ in names],
                "site": dice.choice(["a", "b", "NA"]),
                "pages": [dice.randrange(10**9) for _ in range(dice.choice([0, 1, 50]))],
                "part": dice.choice(["", "", "v", "t"]),
            }
        )
    return pl.DataFrame(found)


def _text(frame: pl.DataFrame) -> bytes:
    """Writes the log as tab-separated text, in which `;` separates ids."""
    lists = ("genres", "shares", "marks", "pages")
    joined = frame.with_columns(pl.col(lists).cast(pl.List(pl.String)).list.join(";"))
    return joined.write_csv(separator="\t", quote_style="never").encode()


def _start(folder: Path, logs: list[Path], schema: dict[str, Any], *flags: str) -> dict[str, bytes]:
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(schema), encoding="utf-8")
    arguments = ["--rules=generic", f"--schema={file}", "--columns", f"--output={folder}"]
    assert main([*map(str, logs), *arguments, *flags]) == 0
    return contents(folder)


def _of_text(schema: dict[str, Any], names: list[str]) -> dict[str, Any]:
    split = [{**bag, "separator": ";"} if isinstance(bag, dict) else bag for bag in BAGS]
    return {**schema, "format": "tsv", "header": True, "columns": names, "categorical": split}


@pytest.mark.slow
@pytest.mark.spark
@needs_spark
@pytest.mark.usefixtures("small_pieces")
def test_both_engines_write_the_same_bags(tmp_path: Path) -> None:
    """Text, JSON lists and Parquet lists; bad rows; then later logs with the dictionary."""
    print(f"seed {SEED}")
    first, later = _log(160, SEED), _log(60, SEED + 1)
    lines = _text(first).splitlines(keepends=True)
    bad = b"1\t5\ta;b\t1\tf;f\ta\t1\tv\n1\t5\ta\tx\tf\ta\t1\tv\n1\t5\ta\t1\txyz\ta\t1\tv\n"
    (tmp_path / "bad.tsv").write_bytes(b"".join([*lines[:100], bad, *lines[100:], b"\n" * 3]))
    (tmp_path / "later.tsv").write_bytes(_text(later) + b"\n\r\n")
    first.write_ndjson(tmp_path / "log.jsonl")
    first.write_parquet(tmp_path / "log.parquet")
    by_part = {
        **SCHEMA,
        "split": {"by": "column", "column": "part", "validation": "v", "test": "t"},
    }
    text = _of_text(by_part, first.columns)
    none_left = {**SCHEMA, "format": "jsonl", "split": {"by": "fraction", "test": 0}}
    runs: dict[str, tuple[list[str], dict[str, Any], list[str]]] = {
        "text": (["bad.tsv", "later.tsv"], text, ["--max_bad_rows=3", "--shuffle=3"]),
        "json": (["log.jsonl"], none_left, ["--pack_ids"]),
        "parquet": (["log.parquet"], {**by_part, "ids": "count"}, []),
        "again": (["later.tsv"], text, [f"--dictionary={tmp_path / 'text-polars'}"]),
    }
    for name, (logs, schema, flags) in runs.items():
        paths = [tmp_path / log for log in logs]
        found, other = (
            _start(tmp_path / f"{name}-{engine}", paths, schema, f"--engine={engine}", *flags)
            for engine in ("polars", "spark")
        )
        assert [file for file, data in found.items() if data != other.get(file)] == [], name
        assert found.keys() == other.keys()
        assert "train/bag_4_weights.bin" in found
        assert all(json.loads(found["records.json"])["shortened_bags"][:2]), name


class _Died(BaseException):
    pass


@pytest.mark.parametrize("shuffle", [[], ["--shuffle=1"]])
def test_a_run_over_bags_goes_on_after_each_state(
    shuffle: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies after each state, with files that are longer than the state knows."""
    from preprocess.engine_polars import buckets, write

    monkeypatch.setattr(buckets, "_BUCKET_BYTES", 300_000)
    monkeypatch.setattr(write, "_COPY_ROWS", 700)
    print(f"seed {SEED}")
    frame = _log(15_000, SEED)
    log = tmp_path / "log.tsv"
    log.write_bytes(_text(frame))
    schema = _of_text(SCHEMA, frame.columns)
    flags = ("--part_mib=1", "--block_mib=1", *shuffle)
    whole = _start(tmp_path / "whole", [log], schema, *flags)
    save, states = Journal.save, 0

    def save_and_die(journal: Journal, state: dict[str, object]) -> None:
        nonlocal states
        save(journal, state)
        states += 1
        raise _Died

    while True:
        before = states
        partial = tmp_path / "killed" / "partial"
        if states and json.loads((partial / "state.json").read_text())["state"]["phase"] == "write":
            for path in partial.glob("**/bag_*.bin"):
                with path.open("ab") as file:
                    file.write(b"more")
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "save", save_and_die)
            try:
                _start(tmp_path / "killed", [log], schema, *flags)
            except _Died:
                continue
        assert states == before
        break
    assert states > 3
    assert contents(tmp_path / "killed") == whole
