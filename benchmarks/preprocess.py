"""Rows per second and peak memory of ingest, compared with parsing the text and nothing else.

    python3 -m benchmarks.preprocess [--rows N] [--memory ROWS ...] [--spark] [--folder DIR]

It generates its own logs, whose tables have the sizes and the skew of Criteo Kaggle's, capped at a
million rows, and prints ratios taken within one run: of wall time, and of processor time, which
other work on the machine disturbs less. Its parts are measured alone too, beside the bytes of a row
that each of them reads and writes. `--memory 1000000 5000000` prints the peak memory at these
numbers of rows instead; `--spark` measures Spark as well.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dlrm import cli

with cli.project_environment():
    import polars as pl
    from isal import igzip

    from benchmarks.shapes import KAGGLE_VOCAB_SIZES
    from preprocess.click_model import ClickModelOptions
    from preprocess.engine_polars.blocks import read_blocks
    from preprocess.engine_polars.parser import LogParser
    from preprocess.ingest import preprocess
    from preprocess.options import Options
    from preprocess.rules import NAMED_RULES, rules_by_name
    from preprocess.summary import Summary
    from preprocess.synthetic import generate, output_paths

TERABYTE_ROWS = 4_373_472_329  # days 0 to 23
_SMALL_TABLE = 20_000


def make_log(
    path: Path, rows: int, seed: int, files: int = 1, cap: int = 1_000_000, zipf: float = 1.05
) -> list[Path]:
    """Generates a log with Kaggle's skew; returns its files."""
    sizes = tuple(min(size, cap) for size in KAGGLE_VOCAB_SIZES)
    generate(path, rows, seed, ClickModelOptions(sizes, zipf=zipf), files)
    return output_paths(path, files)


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Attributes:
        wall: Seconds.
        processor: Seconds of all threads together.
    """

    wall: float
    processor: float


def _cost(work: Callable[[], object]) -> Cost:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - processor)


def _polars_schema(options: Options) -> pl.Schema:
    return pl.Schema(
        [(f"integer_{i}", pl.Int32()) for i in range(1 + options.num_dense)]
        + [(f"hash_{i}", pl.String()) for i in range(options.num_categorical)]
    )


def _polars_blocks(log: Path, options: Options) -> None:
    """Parses every field with Polars' CSV reader, block by block: the first bound."""
    schema = _polars_schema(options)
    for block in read_blocks([log], options.schema, options.block_bytes):
        pl.read_csv(block.text, separator="\t", has_header=False, schema=schema, quote_char=None)


def _polars_scan(log: Path, options: Options) -> None:
    """Lets Polars scan the whole file and count each column's nulls: it need not keep them."""
    scan = pl.scan_csv(
        log, separator="\t", has_header=False, schema=_polars_schema(options), quote_char=None
    )
    scan.select(pl.all().null_count()).collect()


def _read_only(log: Path, options: Options) -> None:
    """Reads the bytes and does nothing with them: the second bound."""
    with open(log, "rb", buffering=0) as file:
        while file.read(options.block_bytes):
            pass


def _parse_only(log: Path, options: Options) -> None:
    """Parses on one thread, as ingest does."""
    parser = LogParser([log], options.schema)
    for block in read_blocks([log], options.schema, options.block_bytes):
        parser.parse(block)


def _compressed(log: Path) -> Path:
    path = log.with_suffix(".tsv.gz")
    with open(log, "rb") as plain, gzip.open(path, "wb", compresslevel=6) as file:
        shutil.copyfileobj(plain, file, 1 << 20)
    return path


def _gunzip(open_gzip: Callable[[Path], BinaryIO], path: Path) -> None:
    with open_gzip(path) as file:
        while file.read(1 << 20):
            pass


def main() -> int:
    """Generates the logs, measures and prints; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the log")
    parser.add_argument("--seed", type=int, default=1, help="seed of the log")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the fastest counts")
    parser.add_argument(
        "--table_cap", type=int, default=1_000_000, help="largest number of rows of a table"
    )
    parser.add_argument("--zipf", type=float, default=1.05, help="exponent of the skew of values")
    parser.add_argument(
        "--memory", type=int, nargs="*", metavar="ROWS", default=[],
        help="measure peak memory at these numbers of rows instead",
    )  # fmt: skip
    parser.add_argument("--spark", action="store_true", help="measure Spark as well")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        folder = Path(name)
        if flags.memory:
            _measure_memory(folder, flags.memory, flags.seed)
            return 0
        log = folder / "log.tsv"
        making = _cost(
            lambda: make_log(log, flags.rows, flags.seed, 1, flags.table_cap, flags.zipf)
        ).wall
        megabytes = log.stat().st_size / 1e6
        print(
            f"{flags.rows:,} rows, {megabytes:,.0f} MB, seed {flags.seed}; best of {flags.repeat}"
        )
        print(f"{'synthetic.py':28} {flags.rows / making:12,.0f} rows/s (one run)")
        _measure(log, folder / "records", flags.rows, flags.repeat)
        if flags.spark:
            seconds = _cost(lambda: _spark(log, folder / "spark")).wall
            print(f"{'--engine=spark, dlrm':28} {flags.rows / seconds:12,.0f} rows/s (one run,"
                  " with the start of Spark)")  # fmt: skip
    return 0


def _spark(log: Path, output: Path) -> None:
    preprocess([log], output, Options(rules_by_name("dlrm")), engine="spark")


def _measure(log: Path, output: Path, rows: int, repeat: int) -> None:
    options = Options(rules_by_name("dlrm"))
    text, record = log.stat().st_size / rows, 4 * options.width
    gz = _compressed(log)
    # Bytes of a row that are read and written, whether from memory or from the page cache.
    parts: dict[str, tuple[Callable[[], object], float]] = {
        "reading alone": (lambda: _read_only(log, options), 2 * text),
        "Polars parsing blocks": (lambda: _polars_blocks(log, options), 4 * text),
        "Polars' scan_csv": (lambda: _polars_scan(log, options), 2 * text),
        "our parser, one thread": (lambda: _parse_only(log, options), 4 * text + record),
        "gzip by zlib": (lambda: _gunzip(gzip.open, gz), text),  # type: ignore[arg-type]
        "gzip by ISA-L": (lambda: _gunzip(igzip.open, gz), text),
    }
    print(f"{'part':26}{'rows/s':>12}{'wall ns/row':>13}{'processor ns/row':>18}{'bytes/row':>11}")
    found = {}
    for name, (work, touched) in parts.items():
        work()  # compiles, and fills the page cache
        found[name] = best = min((_cost(work) for _ in range(repeat)), key=lambda cost: cost.wall)
        print(
            f"{name:26}{rows / best.wall:12,.0f}{best.wall / rows * 1e9:13,.0f}"
            f"{best.processor / rows * 1e9:18,.0f}{touched:11,.0f}"
        )
    parsing = found["Polars parsing blocks"]
    # Text read and cut into blocks, parsed; columns encoded, turned; records written and copied.
    touched = 4 * text + record * (1 + 2 + 2 + 1 + 2 + 2)
    print(f"all of ingest touches {touched:,.0f} bytes of a row in 2 passes")
    for name in NAMED_RULES:
        _measure_rules(name, log, output, rows, repeat, parsing)
    _measure_rules("dlrm", gz, output, rows, repeat, parsing)


def _measure_rules(
    name: str, log: Path, output: Path, rows: int, repeat: int, parsing: Cost
) -> None:
    runs: list[tuple[Cost, Summary]] = []

    def run() -> None:
        summaries.append(preprocess([log], output, Options(rules_by_name(name))))

    summaries: list[Summary] = []
    for _ in range(repeat):
        cost = _cost(run)
        runs.append((cost, summaries[-1]))
    cost, best = min(runs, key=lambda run: run[0].wall)
    total = best.first_seconds + best.second_seconds
    distinct = sum(json.loads((output / "records.json").read_text())["distinct_values"])
    print(
        f"{'--rules=' + name + ' of ' + log.suffix:26} {rows / total:12,.0f} rows/s"
        f" (pass 1 {rows / best.first_seconds:,.0f}, pass 2 {rows / best.second_seconds:,.0f};"
        f" {distinct:,} distinct values), {parsing.wall / total:.2f} of Polars parsing blocks;"
        f" processor {cost.processor / rows * 1e9:,.0f} ns/row,"
        f" {parsing.processor / cost.processor:.2f} of Polars'"
    )
    days = TERABYTE_ROWS / rows * total / 86400
    print(f"{'':26} {TERABYTE_ROWS:,} rows at this rate: {days:.2f} days on this machine")


def _measure_memory(folder: Path, sizes: list[int], seed: int) -> None:
    """Prints the peak memory of a separate process, with tables of two sizes for each log."""
    print(f"{'rows':>12}{'tables':>10}{'distinct':>12}{'peak MB':>9}{'rows/s':>10}")
    for rows in sizes:
        for cap in (_SMALL_TABLE, 1_000_000):
            [log] = make_log(folder / "log.tsv", rows, seed, 1, cap)
            start = time.perf_counter()
            command = [sys.executable, "-m", "preprocess", str(log)]
            process = subprocess.Popen(
                [*command, f"--output={folder / 'out'}", "--rules=dlrm"],
                stdout=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parent.parent,
            )
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise ValueError(f"preprocess of {rows:,} rows ended with status {status}")
            seconds = time.perf_counter() - start
            content = json.loads((folder / "out" / "records.json").read_text())
            print(
                f"{rows:12,}{f'{cap:,}':>10}{sum(content['distinct_values']):12,}"
                f"{usage.ru_maxrss / 1024:9,.0f}{rows / seconds:10,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
