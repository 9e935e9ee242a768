"""Command line of preprocessing: `python3 -m preprocess RAW [RAW ...] --output DIR --rules=NAME`.

It turns flags into options and prints the summary; it must not know how the options are used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    from preprocess.ingest import ENGINES, preprocess
    from preprocess.options import Options
    from preprocess.progress import PassProgress
    from preprocess.rules import GENERIC, RULE_NAMES, rules_by_name, with_numbers
    from preprocess.schema import criteo_schema
    from preprocess.splits import SplitRule
    from preprocess.summary import Summary
    from preprocess.user_schema import read_user_schema


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python3 -m preprocess",
        description="Convert raw click logs (label, integers, hexadecimal hashes; tab-separated)"
        " to record files or split folders, with dictionaries, records.json and checksums. To"
        " continue a run that was killed, start it again with the same command.",
    )
    add = parser.add_argument
    add(
        "raw",
        nargs="+",
        help="raw logs in order, plain or .gz; Spark also reads hdfs:// and s3a://",
    )
    add("--output", required=True, metavar="DIR", help="folder for the result")
    add(
        "--rules",
        choices=RULE_NAMES,
        required=True,
        help="mlperf and dlrm: ids in order of first appearance; spark: ids in order of count, rare"
        " values share id 0; generic: as described by --schema",
    )
    add(
        "--schema",
        type=Path,
        metavar="YAML",
        help="description of your own columns and split, for --rules=generic and only there;"
        " examples: preprocess/schema_example.yaml and schema_any_log.yaml; python3 -m"
        " preprocess.guess writes one (default: none)",
    )
    add(
        "--engine",
        choices=ENGINES,
        default="polars",
        help="polars: one machine; spark: a cluster; both write the same bytes"
        " (default: %(default)s)",
    )
    add(
        "--master",
        metavar="URL",
        help="Spark's master (default: that of spark-submit, otherwise local[*])",
    )
    add(
        "--frequency_threshold",
        type=int,
        metavar="T",
        help="values seen fewer than T times share id 0 (default: spark 15, generic that of"
        " --schema, others 0 = off)",
    )
    add(
        "--max_table_rows",
        type=int,
        metavar="M",
        help="take hashes modulo M first (default: mlperf 40000000, others off)",
    )
    add(
        "--split",
        choices=("fraction", "terabyte"),
        default="fraction",
        help="fraction: the last rows are for validation and test; terabyte: the first half of the"
        " last file is for test, its second half for validation (default: %(default)s)",
    )
    for name, share, part in (
        ("--test_fraction", 0.1, "test"),
        ("--validation_fraction", 0.0, "validation"),
    ):
        add(
            name,
            type=float,
            default=share,
            metavar="F",
            help=f"fraction of the rows for {part}, from 0 to below 1 (default: %(default)s)",
        )
    add(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="shuffle the training rows with this seed (default: keep the order of the logs)",
    )
    add(
        "--columns",
        action="store_true",
        help="write split folders, as split_bin.py does (default: record files)",
    )
    add(
        "--pack_ids",
        action="store_true",
        help="with --columns: pack several ids into one 32-bit word (default: one id per word)",
    )
    add(
        "--dictionary",
        default="",
        metavar="DIR",
        help="reuse the ids of this earlier output folder; other values get id 0 (default: make new"
        " ids)",
    )
    add(
        "--append_day",
        default="",
        metavar="DIR",
        help="reuse the ids of this earlier output folder and give new values the ids after them"
        " (default: make new ids)",
    )
    add(
        "--max_bad_rows",
        type=int,
        default=0,
        metavar="N",
        help="skip up to N bad rows; one more is an error (default: %(default)s)",
    )
    add(
        "--restart",
        action="store_true",
        help="discard an unfinished run in --output (default: continue it)",
    )
    for name, count, what in (
        ("--num_dense", 13, "integer"),
        ("--num_categorical", 26, "hash"),
    ):
        add(
            name,
            type=int,
            default=count,
            metavar="N",
            help=f"number of {what} columns, unless --schema lists them (default: %(default)s)",
        )
    for name, mebibytes, what in (
        ("--block_mib", 16, "to parse at once"),
        ("--part_mib", 1024, "between two saved states"),
    ):
        add(
            name,
            type=int,
            default=mebibytes,
            metavar="N",
            help=f"MiB of text {what}; does not change the output (default: %(default)s)",
        )
    return parser


def _options(flags: argparse.Namespace) -> Options:
    for name in ("block_mib", "part_mib"):
        if getattr(flags, name) < 1:
            raise ValueError(f"--{name}: expected 1 or more, found {getattr(flags, name)}")
    if (flags.rules == GENERIC) != (flags.schema is not None):
        raise ValueError(
            "--schema: expected together with --rules=generic and only there; give both or neither"
        )
    if flags.append_day and flags.dictionary:
        raise ValueError(
            "--append_day: expected without --dictionary, found both; --append_day gives new values"
            " ids of their own, --dictionary gives them id 0"
        )
    if flags.append_day and Path(flags.append_day).resolve() == Path(flags.output).resolve():
        raise ValueError(
            f"--append_day={flags.append_day}: expected another folder than --output; give each day"
            " its own"
        )
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
        dictionary=flags.append_day or flags.dictionary,
        append_day=bool(flags.append_day),
        max_bad_rows=flags.max_bad_rows,
        block_bytes=flags.block_mib << 20,
        part_bytes=flags.part_mib << 20,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return cli.exit_code(
        lambda: _run(arguments), "interrupted; run the same command again to continue"
    )


def _run(arguments: Sequence[str] | None) -> int:
    flags = _parser().parse_args(arguments)
    style = "bar" if sys.stdout.isatty() else "lines"
    options = _options(flags)
    summary = preprocess(
        flags.raw,
        flags.output,
        options,
        partial(PassProgress, style=style),
        engine=flags.engine,
        restart=flags.restart,
        master=flags.master,
    )
    _print_summary(summary, options)
    return 0


def _print_summary(summary: Summary, options: Options) -> None:
    content = summary.description
    samples = [f"{name} {content[f'{name}_samples']:,}" for name in ("train", "validation", "test")]
    print(f"{', '.join(samples)}; {sum(content['vocab_sizes']):,} table rows")
    lowest = content["lowest_dense"]
    if content["dense_values_raised"]:
        print(f"{content['dense_values_raised']:,} dense values below {lowest} raised to {lowest}")
    for bag, count in zip(options.bags, content.get("shortened_bags", [])):
        if count:
            what = f"more than {bag.max_ids} ids; their first {bag.max_ids} are kept (max_ids)"
            name = options.schema.fields[options.schema.categorical[bag.table]].name
            print(f"{count:,} bags of {name} had {what}")
    if content["bad_rows"]:
        print(f"{content['bad_rows']:,} bad rows skipped; the first:")
        for row in content["first_bad_rows"]:
            print(f"  {row}")
    rows = summary.rows
    for name, seconds in (("pass 1", summary.first_seconds), ("pass 2", summary.second_seconds)):
        print(f"{name}: {seconds:.2f} s, {rows / seconds:,.0f} rows/s")
    total = summary.first_seconds + summary.second_seconds
    print(f"{rows:,} rows in {total:.2f} s, {rows / total:,.0f} rows/s")


if __name__ == "__main__":
    sys.exit(main())
