"""Ingest of logs of any kind compared with that of Criteo's: rows and megabytes per second.

    python3 -m benchmarks.any_log [--rows N] [--repeat N]

The same rows are ingested by Criteo's rules, as float columns with hashes, as float columns with
texts, and with the last ten hashes of each row in one field, as a bag. All make column files. The
ways take turns, and the fastest run of each counts.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dlrm import cli

with cli.project_environment():
    from benchmarks.preprocess import make_log
    from preprocess.ingest import preprocess
    from preprocess.options import Options
    from preprocess.rules import rules_by_name
    from preprocess.user_schema import parse_user_schema

_DENSE, _CATEGORICAL, _IN_BAG = 13, 26, 10


def _schema(kind: str, singles: int, bag: bool) -> dict[str, Any]:
    """Returns the schema of a log whose last hashes are in one field, or in one each."""
    dense = [f"I{i}" for i in range(_DENSE)]
    names = [f"C{i}" for i in range(singles)]
    categorical: list[Any] = [{"name": name, "type": kind} for name in names]
    if bag:
        categorical.append({"name": "B", "type": kind, "separator": "|", "max_ids": _IN_BAG})
    return {
        "format": "tsv",
        "dense_type": "float32",
        "columns": ["label", *dense, *names, *(["B"] if bag else [])],
        "label": "label",
        "dense": [{"name": name, "transform": "log1p"} for name in dense],
        "categorical": categorical,
    }


def _with_bags(log: Path) -> Path:
    """Writes the log with its last hashes in one field; empty ones are left out."""
    path = log.with_suffix(".bags.tsv")
    with log.open(encoding="ascii") as source, path.open("w", encoding="ascii") as target:
        for line in source:
            fields = line.rstrip("\n").split("\t")
            bag = "|".join(field for field in fields[-_IN_BAG:] if field)
            target.write("\t".join([*fields[:-_IN_BAG], bag]) + "\n")
    return path


def _ways(log: Path) -> dict[str, tuple[Path, Options]]:
    ways = {"Criteo's rules": (log, Options(rules_by_name("spark", 0), columns=True))}
    for name, path, content in (
        ("float columns, hashes", log, _schema("hex", _CATEGORICAL, bag=False)),
        ("float columns, texts", log, _schema("value", _CATEGORICAL, bag=False)),
        ("bags of hashes", _with_bags(log), _schema("hex", _CATEGORICAL - _IN_BAG, bag=True)),
        ("bags of texts", log.with_suffix(".bags.tsv"), _schema("value", 16, bag=True)),
    ):
        user = parse_user_schema(content)
        ways[name] = (path, Options(user.rules, user.schema, user.split, columns=True))
    return ways


def main() -> int:
    """Generates the log, measures and prints; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the log")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the fastest counts")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (log,) = make_log(Path(folder) / "log.tsv", flags.rows, seed=1)
        ways = _ways(log)
        seconds = dict.fromkeys(ways, float("inf"))
        for _ in range(flags.repeat):
            for name, (path, options) in ways.items():
                output = Path(folder) / "out"
                start = time.perf_counter()
                preprocess([path], output, options)
                seconds[name] = min(seconds[name], time.perf_counter() - start)
                shutil.rmtree(output)
        base = seconds["Criteo's rules"]
        for name, (path, _) in ways.items():
            rate, size = flags.rows / seconds[name], path.stat().st_size / 1e6
            ratio = base / seconds[name]
            print(f"{name}: {rate:,.0f} rows/s, {size / seconds[name]:.1f} MB/s, {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
