"""Logs with columns of any kind: both engines write the same bytes, and a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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

SEED = 41
SCHEMA: dict[str, Any] = {
    "format": "csv",
    "header": True,
    "dense_type": "float32",
    "columns": ["when", "rating", "x", "gain", "site", "user", "rest"],
    "absent": ["?"],
    "label": {"name": "rating", "above": 3},
    "dense": [
        {"name": "x", "transform": "standardise", "missing": "mean", "clip": [-50, 50]},
        {"name": "gain", "transform": "log1p"},
        {"name": "share", "column": "gain", "transform": "quantile", "missing": "median"},
        {"name": "hour", "column": "when", "type": "hour"},
    ],
    "categorical": [
        {"name": "site", "threshold": 2},
        {"name": "hashed", "column": "site", "type": "text", "modulo": 50},
        {"name": "weekday", "column": "when", "type": "weekday"},
        "user",
    ],
    "split": {"by": "time", "column": "when", "validation": "2024-02-20", "test": "2024-02-25"},
}


def _log(generator: np.random.Generator, rows: int) -> pl.DataFrame:
    """Returns a log: tiny and huge floats, missing values, texts of many scripts and lengths."""
    minutes = np.sort(generator.integers(0, 60 * 24 * 60, rows))
    starts = np.datetime64("2024-01-01T00:00") + minutes.astype("timedelta64[m]")
    x = generator.normal(0, 30, rows) * 10.0 ** generator.integers(-30, 4, rows)
    sites = [f"sité {n} 例" if n % 3 else f'a, "{n}"' for n in generator.zipf(1.4, rows) % 300]
    return pl.DataFrame(
        {
            "when": [str(start).replace("T", " ") for start in starts],
            "rating": generator.choice([0.5, 1, 2, 3, 3.5, 4, 5], rows),
            "x": [None if generator.random() < 0.1 else value for value in x.tolist()],
            "gain": np.round(generator.lognormal(2, 3, rows), 3) * generator.choice([-1, 1], rows),
            "site": [None if generator.random() < 0.1 else site for site in sites],
            "user": [f"u{n}" for n in generator.integers(0, 2000, rows)],
            "rest": ["ignored"] * rows,
        }
    )


def _start(folder: Path, logs: list[Path], schema: dict[str, Any], *flags: str) -> dict[str, bytes]:
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(schema), encoding="utf-8")
    arguments = ["--rules=generic", f"--schema={file}", "--columns", f"--output={folder}"]
    assert main([*map(str, logs), *arguments, *flags]) == 0
    return contents(folder)


@pytest.mark.slow
@pytest.mark.spark
@needs_spark
@pytest.mark.usefixtures("small_pieces")
def test_both_engines_write_the_same_bytes(tmp_path: Path) -> None:
    """Three formats; then a later log with the dictionary of the first, and bad rows."""
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    first, later = _log(generator, 900), _log(generator, 300)
    text = first.write_csv().encode()
    lines = text.splitlines(keepends=True)
    bad = b'2024-01-01,4,1d,0,a,b,c\n2024-01-01,4,NaN,0,a,b,c\n2024-01-01,4,1,0,"a,b,c\n\xff\n\n'
    (tmp_path / "bad.csv").write_bytes(
        b"\xef\xbb\xbf" + b"".join([*lines[:500], bad, *lines[500:]]).replace(b"\n", b"\r\n")
    )
    first.write_ndjson(tmp_path / "log.jsonl")
    first.write_parquet(tmp_path / "log.parquet")
    later.write_csv(tmp_path / "later.csv")
    by_row = {**SCHEMA, "split": {"by": "fraction", "test": 0.1, "validation": 0.05}}
    runs: dict[str, tuple[list[str], dict[str, Any], list[str]]] = {
        "text": (["bad.csv", "later.csv"], SCHEMA, ["--max_bad_rows=5", "--shuffle=3"]),
        "json": (["log.jsonl"], {**by_row, "format": "jsonl", "header": False}, []),
        "parquet": (["log.parquet"], {**by_row, "format": "parquet", "header": False}, []),
        "again": (["later.csv"], {**SCHEMA, "ids": "count"}, ["--dictionary"]),
    }
    for name, (logs, schema, flags) in runs.items():
        found = {}
        for engine in ("polars", "spark"):
            mine = [
                f.replace("--dictionary", f"--dictionary={tmp_path / 'text-polars'}") for f in flags
            ]
            paths = [tmp_path / log for log in logs]
            found[engine] = _start(
                tmp_path / f"{name}-{engine}", paths, schema, f"--engine={engine}", *mine
            )
        other = found["spark"]
        assert [file for file, data in found["polars"].items() if data != other[file]] == [], name
        assert found["polars"].keys() == other.keys()


class _Died(BaseException):
    pass


def test_a_run_over_columns_goes_on_after_each_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {SEED}")
    log = tmp_path / "log.csv"
    _log(np.random.default_rng(SEED), 20_000).write_csv(log)
    flags = ("--part_mib=1", "--block_mib=1", "--shuffle=1")
    whole = _start(tmp_path / "whole", [log], SCHEMA, *flags)
    save, states = Journal.save, 0

    def save_and_die(journal: Journal, state: dict[str, object]) -> None:
        nonlocal states
        save(journal, state)
        states += 1
        raise _Died

    while True:
        before = states
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "save", save_and_die)
            try:
                _start(tmp_path / "killed", [log], SCHEMA, *flags)
            except _Died:
                continue
        assert states == before
        break
    assert states > 3
    assert contents(tmp_path / "killed") == whole
