"""Command line of preprocessing: `python3 -m preprocess RAW [RAW ...] --output DIR --rules=NAME`.

It turns flags into options and errors into one line; it knows nothing of how either is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from preprocess.progress import PassProgress
from preprocess.records import Options, Summary, preprocess
from preprocess.rules import RULE_NAMES, rules_by_name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m preprocess",
        description="Turn raw click logs (label, integers, hexadecimal hashes; tab-separated) into"
        " record files: train_data.bin, test_data.bin, perhaps val_data.bin, and records.json.",
    )
    parser.add_argument("raw", nargs="+", type=Path, help="logs in order, plain or .gz")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--rules",
        choices=RULE_NAMES,
        required=True,
        help="mlperf and dlrm: ids by first appearance; spark: by count, rare ones share id 0",
    )
    parser.add_argument(
        "--frequency_threshold",
        type=int,
        metavar="T",
        help="values seen fewer than T times share id 0 (default: spark 15, others 0 = off)",
    )
    parser.add_argument(
        "--max_table_rows",
        type=int,
        metavar="M",
        help="hashes are taken modulo M first (default: mlperf 40000000, others off)",
    )
    parser.add_argument(
        "--split",
        choices=("fraction", "terabyte"),
        default="fraction",
        help="fraction: the last rows validate and test; terabyte: the last file's first half"
        " tests, its second half validates",
    )
    parser.add_argument("--test_fraction", type=float, default=0.1, metavar="F")
    parser.add_argument("--validation_fraction", type=float, default=0.0, metavar="F")
    parser.add_argument("--num_dense", type=int, default=13)
    parser.add_argument("--num_categorical", type=int, default=26)
    parser.add_argument(
        "--block_mib",
        type=int,
        default=16,
        help="text parsed at once; output does not depend on it",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    flags = _parser().parse_args(arguments)
    try:
        if flags.block_mib < 1:
            raise ValueError(f"--block_mib: expected 1 or more, found {flags.block_mib}")
        options = Options(
            rules=rules_by_name(flags.rules, flags.frequency_threshold, flags.max_table_rows),
            num_dense=flags.num_dense,
            num_categorical=flags.num_categorical,
            split=flags.split,
            test_fraction=flags.test_fraction,
            validation_fraction=flags.validation_fraction,
            block_bytes=flags.block_mib << 20,
        )
        style = "bar" if sys.stdout.isatty() else "lines"
        summary = preprocess(flags.raw, flags.output, options, partial(PassProgress, style=style))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
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
    rows = summary.rows
    for name, seconds in (("pass 1", summary.first_seconds), ("pass 2", summary.second_seconds)):
        print(f"{name}: {seconds:.2f} s, {rows / seconds:,.0f} rows/s")
    total = summary.first_seconds + summary.second_seconds
    print(f"{rows:,} rows in {total:.2f} s, {rows / total:,.0f} rows/s")


if __name__ == "__main__":
    sys.exit(main())
