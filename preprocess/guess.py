"""Writes a commented schema to start from: `python3 -m preprocess.guess FILE [--output SCHEMA]`.

It looks at a sample of the rows and decides by what the columns hold, then by their names. The
schema is valid as it is, and every decision has its reason beside it. This module must not know how
rows are made.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm import cli
from preprocess.column_kinds import ColumnGuess, guess_columns, is_number
from preprocess.columns import UNIT_SEPARATOR

_SAMPLE_ROWS = 20_000
_SAMPLE_BYTES = 16 << 20
_DELIMITERS = ",\t;|"


@dataclass(frozen=True)
class LogSample:
    """The first rows of a file, as texts.

    Attributes:
        format: One of "tsv", "csv", "parquet" and "jsonl".
        delimiter: The character between fields.
        header: Whether the first line names the columns.
        names: The columns.
        rows: The fields of each row.
        whole: Whether these are all rows.
        lists: The columns of lists, whose elements `UNIT_SEPARATOR` separates in the texts.
        nested: The names of columns that cannot become text.
    """

    format: str
    delimiter: str
    header: bool
    names: list[str]
    rows: list[list[str]]
    whole: bool
    lists: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()


def read_sample(path: Path) -> LogSample:
    """Reads the first rows of a file.

    Raises:
        ValueError: The file has no rows, or rows of unequal length.
        OSError: The file cannot be read.
    """
    if ".parquet" in path.suffixes:
        return _parquet_sample(path)
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read(_SAMPLE_BYTES)
        whole = not file.read(1)
    if not whole:
        data = data[: data.rfind(b"\n") + 1]
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: expected UTF-8 text, found byte {data[error.start]:#x}; convert"
            " the file to UTF-8, for instance with iconv"
        ) from None
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    whole = whole and len(lines) <= _SAMPLE_ROWS
    lines = lines[:_SAMPLE_ROWS]
    if not lines:
        raise ValueError(f"{path}: expected rows, found an empty file; give a log with rows")
    if lines[0].lstrip().startswith("{"):
        return _json_sample(path, lines, whole)
    return _text_sample(path, lines, whole)


def _parquet_sample(path: Path) -> LogSample:
    import polars as pl

    try:
        scan = pl.scan_parquet(path)
        types = scan.collect_schema()
        inner = {name: kind.inner for name, kind in types.items() if isinstance(kind, pl.List)}
        lists = [name for name, kind in inner.items() if not kind.is_nested()]
        nested = [name for name, kind in types.items() if kind.is_nested() and name not in lists]
        texts = [
            pl.col(name).cast(pl.List(pl.String)).list.join(UNIT_SEPARATOR)
            if name in lists
            else pl.col(name).cast(pl.String)
            for name in types
            if name not in nested
        ]
        frame = scan.select(texts).head(_SAMPLE_ROWS).collect()
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"{path}: expected a Parquet file of numbers and texts, found {error}; write the schema"
            " by hand (docs/preprocessing.md)"
        ) from None
    if not frame.height:
        raise ValueError(f"{path}: expected rows, found none; give a log with rows")
    rows = [[text or "" for text in row] for row in frame.rows()]
    whole = frame.height < _SAMPLE_ROWS
    return LogSample(
        "parquet", "\t", False, frame.columns, rows, whole, tuple(lists), tuple(nested)
    )


def _json_sample(path: Path, lines: list[str], whole: bool) -> LogSample:
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise ValueError(
                f"{path}, line {number}: expected a JSON object, found {line[:40]!r}; write one"
                " object on each line"
            )
        objects.append(content)
    names = list(dict.fromkeys(name for content in objects for name in content))
    rows = [[_json_text(content.get(name)) for name in names] for content in objects]
    lists = tuple(
        name
        for name in names
        if all(content.get(name) is None or _is_list(content[name]) for content in objects)
        and any(content.get(name) for content in objects)
    )
    return LogSample("jsonl", "\n", False, names, rows, whole, lists)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(v, (list, dict, bool)) for v in value)


def _json_text(value: Any) -> str:
    if value is None:
        return ""
    if _is_list(value):
        return UNIT_SEPARATOR.join(_json_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def _text_sample(path: Path, lines: list[str], whole: bool) -> LogSample:
    counts = {delimiter: _fields(lines, delimiter) for delimiter in _DELIMITERS}
    delimiter = max(counts, key=lambda found: counts[found])
    if counts[delimiter] < 2:
        raise ValueError(
            f"{path}, line 1: expected fields separated by a tab or one of , ; |, found"
            f" {lines[0][:60]!r}; give a table"
        )
    rows = _split(lines, delimiter)
    width = counts[delimiter]
    odd = [number for number, row in enumerate(rows, 1) if len(row) != width]
    rows = [[field.strip() for field in row] for row in rows if len(row) == width]
    if odd:
        print(
            f"{path}, line {odd[0]}: expected {width} fields as in most lines, found another"
            f" number; {len(odd)} such line(s) of the sample are bad rows (--max_bad_rows)",
            file=sys.stderr,
        )
    first, others = rows[0], rows[1:]
    header = bool(others) and not any(is_number(name) or not name for name in first)
    header = header and any(
        first[i] not in {row[i] for row in others} for i in range(width)
    ) and (len(set(first)) == width)  # fmt: skip
    names = first if header else [f"column_{i}" for i in range(width)]
    log_format = "tsv" if delimiter == "\t" else "csv"
    return LogSample(log_format, delimiter, header, names, others if header else rows, whole)


def _fields(lines: list[str], delimiter: str) -> int:
    """Returns the most frequent number of fields, or 0 where most lines have another one."""
    sizes = [len(row) for row in _split(lines[:200], delimiter)]
    usual = max(set(sizes), key=sizes.count)
    return usual if 2 * sizes.count(usual) > len(sizes) else 0


def _split(lines: list[str], delimiter: str) -> list[list[str]]:
    if delimiter == "\t":
        return [line.split("\t") for line in lines]
    return [next(csv.reader([line], delimiter=delimiter, skipinitialspace=True)) for line in lines]


def schema_text(path: Path, sample: LogSample) -> str:
    """Returns the schema file.

    Raises:
        ValueError: No column can be the label, or none is left for a feature.
    """
    guess = guess_columns(sample.names, sample.rows, sample.lists)
    guess.unused += [(name, "parts within parts") for name in sample.nested]
    if guess.label is None:
        raise ValueError(
            f"{path}: expected a column of two values or of ratings as the label, found none; write"
            " the schema by hand (docs/preprocessing.md)"
        )
    if not guess.dense:
        raise ValueError(
            f"{path}: expected a column of numbers or times as a dense feature, found none; add"
            " one, or write the schema by hand (docs/preprocessing.md)"
        )
    sampled = f"{'all' if sample.whole else 'the first'} {len(sample.rows):,} rows"
    lines = [
        f"# Guessed from {sampled} of {path.name}. Check the label and the kinds, then:",
        f"# python3 -m preprocess {path.name} --rules=generic --schema=THIS --columns --output=DIR",
        f"format: {sample.format}",
        "dense_type: float32         # dense features are float32 in column files",
    ]
    if sample.format in ("tsv", "csv"):
        if sample.delimiter not in ",\t":
            lines.append(f"delimiter: {_quoted(sample.delimiter)}")
        lines.append(f"header: {str(sample.header).lower()}")
        lines.append(f"columns: [{', '.join(map(_quoted, sample.names))}]")
    absent = f"[{', '.join(map(_quoted, guess.absent))}]"
    lines.append(f"absent: {absent:<19} # texts that stand for no value, beside the empty one")
    lines.append(f"label: {guess.label}   # {guess.label_reason}")
    lines += _listed("dense", guess.dense) + _listed("categorical", guess.categorical)
    lines += [f"# not used: {_quoted(name)} ({reason})" for name, reason in guess.unused]
    lines += [
        "threshold: 0                # rarer values share id 0 with the missing ones",
        "ids: appearance             # order of the ids: appearance or count",
        "# without a dictionary (--embedding=dynamic): {name: ..., ids: hash, modulo: 2147483647}",
        "split: {by: fraction, test: 0.1}   # the last rows; or by file, column or time",
    ]
    return "\n".join(lines) + "\n"


def _listed(key: str, columns: Sequence[ColumnGuess]) -> list[str]:
    entries = [f"  - {{name: {_quoted(c.name)}{c.keys}}}   # {c.reason}" for c in columns]
    return [f"{key}:", *entries] if entries else [f"{key}: []"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return cli.exit_code(lambda: _run(arguments), "interrupted")


def _run(arguments: Sequence[str] | None) -> int:
    parser = cli.Parser(
        prog="python3 -m preprocess.guess",
        description="Reads a sample of a log (TSV, CSV, JSON lines, plain or .gz; Parquet) and"
        " writes a commented schema for python3 -m preprocess --rules=generic.",
    )
    parser.add_argument("file", type=Path, help="the log")
    parser.add_argument(
        "--output", type=Path, metavar="YAML", help="where to write it (default: standard output)"
    )
    flags: argparse.Namespace = parser.parse_args(arguments)
    text = schema_text(flags.file, read_sample(flags.file))
    if flags.output:
        flags.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
