"""Command line of preprocessing: `python3 -m preprocess RAW [RAW ...] --output DIR --rules=NAME`.

It turns flags into options and errors into one line; it knows nothing of how either is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from preprocess.ingest import ENGINES, preprocess
from preprocess.options import Options
from preprocess.progress import PassProgress
from preprocess.rules import GENERIC, RULE_NAMES, rules_by_name, with_numbers
from preprocess.schema import criteo_schema
from preprocess.splits import SplitRule
from preprocess.summary import Summary
from preprocess.user_schema import read_user_schema


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m preprocess",
        description="Turn raw click logs (label, integers, hexadecimal hashes; tab-separated) into"
        " record files or split folders, with dictionaries, records.json and checksums. A run that"
        " was killed continues when it is started again with the same command.",
    )
    add = parser.add_argument
    add("raw", nargs="+", help="logs in order, plain or .gz (Spark: also hdfs://, s3a://)")
    add("--output", required=True, metavar="DIR", help="folder to write")
    add(
        "--rules",
        choices=RULE_NAMES,
        required=True,
        help="mlperf and dlrm: ids by first appearance; spark: by count, rare ones share id 0;"
        " generic: as --schema says",
    )
    add("--schema", type=Path, metavar="YAML", help="the columns of your own logs (generic)")
    add("--engine", choices=ENGINES, default="polars", help="one machine, or Spark: same bytes")
    add("--master", help="Spark's master (default: spark-submit's, else local[*])")
    add(
        "--frequency_threshold",
        type=int,
        metavar="T",
        help="values seen fewer than T times share id 0 (default: spark 15, others 0 = off)",
    )
    add(
        "--max_table_rows",
        type=int,
        metavar="M",
        help="hashes are taken modulo M first (default: mlperf 40000000, others off)",
    )
    add(
        "--split",
        choices=("fraction", "terabyte"),
        default="fraction",
        help="fraction: the last rows validate and test; terabyte: the last file's first half"
        " tests, its second half validates",
    )
    add("--test_fraction", type=float, default=0.1, metavar="F")
    add("--validation_fraction", type=float, default=0.0, metavar="F")
    add("--shuffle", type=int, metavar="SEED", help="shuffle the rows that train")
    add("--columns", action="store_true", help="write split folders as split_bin.py does")
    add("--pack_ids", action="store_true", help="with --columns: pack ids into fewer words")
    add("--dictionary", default="", metavar="DIR", help="use the ids of an earlier output")
    add("--max_bad_rows", type=int, default=0, metavar="N", help="leave out up to N bad rows")
    add("--restart", action="store_true", help="forget an unfinished run in --output")
    add("--num_dense", type=int, default=13)
    add("--num_categorical", type=int, default=26)
    for name, mebibytes, what in (
        ("--block_mib", 16, "parsed at once"),
        ("--part_mib", 1024, "after which progress is kept"),
    ):
        add(name, type=int, default=mebibytes, help=f"text {what}; output does not depend on it")
    return parser


def _options(flags: argparse.Namespace) -> Options:
    for name in ("block_mib", "part_mib"):
        if getattr(flags, name) < 1:
            raise ValueError(f"--{name}: expected 1 or more, found {getattr(flags, name)}")
    if (flags.rules == GENERIC) != (flags.schema is not None):
        raise ValueError("--schema: expected with --rules=generic and only there; give both")
    if flags.rules == GENERIC:
        user = read_user_schema(flags.schema)
        schema, rules, split = user.schema, user.rules, user.split
        rules = with_numbers(rules, flags.frequency_threshold, flags.max_table_rows)
    else:
        schema = criteo_schema(flags.num_dense, flags.num_categorical)
        rules = rules_by_name(flags.rules, flags.frequency_threshold, flags.max_table_rows)
        split = SplitRule(flags.split, flags.test_fraction, flags.validation_fraction)
    return Options(
        rules=rules,
        schema=schema,
        split=split,
        shuffle=flags.shuffle,
        columns=flags.columns,
        pack_ids=flags.pack_ids,
        dictionary=flags.dictionary,
        max_bad_rows=flags.max_bad_rows,
        block_bytes=flags.block_mib << 20,
        part_bytes=flags.part_mib << 20,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    flags = _parser().parse_args(arguments)
    style = "bar" if sys.stdout.isatty() else "lines"
    try:
        summary = preprocess(
            flags.raw,
            flags.output,
            _options(flags),
            partial(PassProgress, style=style),
            engine=flags.engine,
            restart=flags.restart,
            master=flags.master,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    _report(summary)
    return 0


def _report(summary: Summary) -> None:
    content = summary.description
    samples = [f"{name} {content[f'{name}_samples']:,}" for name in ("train", "validation", "test")]
    print(f"{', '.join(samples)}; {sum(content['vocab_sizes']):,} table rows")
    lowest = content["lowest_dense"]
    if content["dense_values_raised"]:
        print(f"{content['dense_values_raised']:,} dense values below {lowest} raised to {lowest}")
    if content["bad_rows"]:
        print(f"{content['bad_rows']:,} bad rows left out; the first:")
        for row in content["first_bad_rows"]:
            print(f"  {row}")
    rows = summary.rows
    for name, seconds in (("pass 1", summary.first_seconds), ("pass 2", summary.second_seconds)):
        print(f"{name}: {seconds:.2f} s, {rows / seconds:,.0f} rows/s")
    total = summary.first_seconds + summary.second_seconds
    print(f"{rows:,} rows in {total:.2f} s, {rows / total:,.0f} rows/s")


if __name__ == "__main__":
    sys.exit(main())
