"""Rows a second of preprocessing, beside what merely parsing the same text costs.

Run `python3 benchmarks/preprocess.py`. It makes its own log, with tables as skewed and as large as
Criteo Kaggle's capped at a million rows, and prints ratios taken in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import polars as pl

from preprocess.planted import PlantedOptions
from preprocess.records import Options, preprocess
from preprocess.rules import RULE_NAMES, rules_by_name
from preprocess.synthetic import generate
from preprocess.engine_polars.blocks import read_blocks

KAGGLE_VOCAB_SIZES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
"""Published table sizes of Criteo Kaggle under the dlrm rules."""


def _parse_only(log: Path, block_bytes: int, num_dense: int, num_categorical: int) -> None:
    """The bound: every field through Polars' CSV reader, and nothing else."""
    schema = pl.Schema(
        [(f"integer_{i}", pl.Int32()) for i in range(1 + num_dense)]
        + [(f"hash_{i}", pl.String()) for i in range(num_categorical)]
    )
    for block in read_blocks([log], block_bytes):
        pl.read_csv(block.text, separator="\t", has_header=False, schema=schema, quote_char=None)


def _read_only(log: Path, block_bytes: int) -> None:
    """The other bound: the bytes alone."""
    with open(log, "rb", buffering=0) as file:
        while file.read(block_bytes):
            pass


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Makes the log, measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many runs counts")
    parser.add_argument("--table_cap", type=int, default=1_000_000, help="rows of a table at most")
    parser.add_argument("--zipf", type=float, default=1.05)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    flags = parser.parse_args()
    sizes = tuple(min(size, flags.table_cap) for size in KAGGLE_VOCAB_SIZES)
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        log = Path(folder) / "log.tsv"
        planted = PlantedOptions(sizes, zipf=flags.zipf)
        making = _seconds(lambda: generate(log, flags.rows, flags.seed, planted))
        megabytes = log.stat().st_size / 1e6
        print(
            f"{flags.rows:,} rows, {megabytes:,.0f} MB, seed {flags.seed}; best of {flags.repeat}"
        )
        print(f"{'synthetic.py':28} {flags.rows / making:12,.0f} rows/s (one run)")
        _measure(log, Path(folder) / "records", flags.rows, flags.repeat)


def _measure(log: Path, output: Path, rows: int, repeat: int) -> None:
    block_bytes = Options(rules_by_name("dlrm")).block_bytes
    shape = Options(rules_by_name("dlrm"))
    reading = min(_seconds(lambda: _read_only(log, block_bytes)) for _ in range(repeat))
    parsing = min(
        _seconds(lambda: _parse_only(log, block_bytes, shape.num_dense, shape.num_categorical))
        for _ in range(repeat)
    )
    print(f"{'reading alone':28} {rows / reading:12,.0f} rows/s")
    print(f"{'Polars parsing alone':28} {rows / parsing:12,.0f} rows/s")
    for name in RULE_NAMES:
        runs = [preprocess([log], output, Options(rules_by_name(name))) for _ in range(repeat)]
        best = min(runs, key=lambda run: run.first_seconds + run.second_seconds)
        total = best.first_seconds + best.second_seconds
        distinct = sum(json.loads((output / "records.json").read_text())["distinct_values"])
        print(
            f"{'--rules=' + name:28} {rows / total:12,.0f} rows/s"
            f" (pass 1 {rows / best.first_seconds:,.0f}, pass 2 {rows / best.second_seconds:,.0f};"
            f" {distinct:,} distinct values), {parsing / total:.2f} of parsing alone"
        )


if __name__ == "__main__":
    main()
