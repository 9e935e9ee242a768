"""Checks that both ingest engines write the same bytes, for every rule set, threshold and modulus.

    python3 -m benchmarks.engines [--rows N] [--files N] [--rules RULES ...] [--columns] [LOG ...]

It generates a log with Kaggle's skew, or takes yours, ingests it with Polars and with Spark, and
prints a line for each choice of options. The exit code is 1 if any file differs.
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    from benchmarks.preprocess import make_log
    from preprocess.engine_spark.spark_session import spark_session
    from preprocess.ingest import preprocess
    from preprocess.options import Options
    from preprocess.rules import NAMED_RULES, rules_by_name


@dataclass(frozen=True)
class Choice:
    """One choice of ingest options."""

    rules: str
    threshold: int
    max_table_rows: int | None
    shuffle: int | None
    columns: bool

    def options(self) -> Options:
        """Returns them as `preprocess` takes them."""
        rules = rules_by_name(self.rules, self.threshold, self.max_table_rows)
        return Options(rules, shuffle=self.shuffle, columns=self.columns)


def main() -> int:
    """Compares all choices and prints; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("raw", nargs="*", type=Path, help="logs to read instead of a generated one")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the generated log")
    parser.add_argument("--files", type=int, default=8, help="files of the generated log")
    parser.add_argument("--seed", type=int, default=1, help="seed of the generated log")
    parser.add_argument("--rules", nargs="*", default=list(NAMED_RULES))
    parser.add_argument("--thresholds", nargs="*", type=int, default=[0, 3, 15])
    parser.add_argument("--max_table_rows", type=int, default=100_000)
    parser.add_argument("--shuffle", type=int, metavar="SEED")
    parser.add_argument("--columns", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    flags = parser.parse_args()
    moduli = (None, flags.max_table_rows)
    choices = [
        Choice(*choice, flags.shuffle, flags.columns)
        for choice in product(flags.rules, flags.thresholds, moduli)
    ]
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        folder = Path(name)
        logs = flags.raw or make_log(folder / "log.tsv.gz", flags.rows, flags.seed, flags.files)
        print(f"{'rules':8}{'T':>4}{'max rows':>10}{'Polars s':>10}{'Spark s':>10}"
              f"{'rows':>12}{'files':>7}  result", flush=True)  # fmt: skip
        # All choices share a session, so that its start is not measured.
        with spark_session(None):
            return max([_compare(choice, logs, folder) for choice in choices])


def _compare(choice: Choice, logs: list[Path], folder: Path) -> int:
    seconds, rows = {}, 0
    for engine in ("polars", "spark"):
        start = time.perf_counter()
        rows = preprocess(logs, folder / engine, choice.options(), engine=engine).rows
        seconds[engine] = time.perf_counter() - start
    names = {
        str(path.relative_to(folder / engine))
        for engine in seconds
        for path in (folder / engine).rglob("*")
        if path.is_file()
    }
    _, different, absent = filecmp.cmpfiles(
        folder / "polars", folder / "spark", sorted(names), shallow=False
    )
    result = "identical" if not different and not absent else f"DIFFER: {different + absent}"
    modulus = rules_by_name(choice.rules, 0, choice.max_table_rows).max_table_rows
    print(f"{choice.rules:8}{choice.threshold:4}{modulus or '-':>10}{seconds['polars']:10.1f}"
          f"{seconds['spark']:10.1f}{rows:12,}{len(names):7}  {result}", flush=True)  # fmt: skip
    return int(bool(different or absent))


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
