"""Preprocessing: a file worked out by hand, a plain-Python reference, and every bad row."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm.formats.zip_strict import zip_strict
from preprocess.__main__ import main
from preprocess.click_model import ClickModelOptions
from preprocess.engine_polars.blocks import TextBlock, read_blocks
from preprocess.engine_polars.dictionary import Dictionary
from preprocess.engine_polars.parser import LogParser
from preprocess.ingest import preprocess
from preprocess.options import Options
from preprocess.rules import NAMED_RULES, rules_by_name
from preprocess.schema import criteo_schema
from preprocess.splits import SplitRule, split_by_fraction, split_terabyte, tail_rows
from preprocess.synthetic import generate
from preprocess.user_schema import parse_user_schema

SEED = 11
SAMPLE = Path(__file__).resolve().parents[4] / "shared" / "data" / "criteo_kaggle_1999.tsv"
SMALL = ["--num_dense=2", "--num_categorical=2"]

# label, two integers, two hashes. Missing: row 2 dense 1 and category 1, row 3 category 2, row 5
# dense 2. 0000000A and a are one value (10), ff and FF another (255); 00000000 is the value 0.
HAND = (
    b"1\t5\t-3\t0000000A\tff\n"
    b"0\t\t7\t\tFF\n"
    b"0\t-1\t0\ta\t\n"
    b"1\t2\t-2\tB\t00000000\n"
    b"0\t3\t\ta\t100\n"
    b"1\t0\t1\tfFfFfFfF\tff\n"
)
LABELS = [1, 0, 0, 1, 0, 1]
# Missing reads 0; below the rule's lowest value (0, or -1 for spark) becomes that value.
DENSE = [[5, 0], [0, 7], [0, 0], [2, 0], [3, 0], [0, 1]]
DENSE_SPARK = [[5, -1], [0, 7], [-1, 0], [2, -1], [3, 0], [0, 1]]


def _records(path: Path, columns: int) -> list[list[int]]:
    return np.fromfile(path, "<i4").reshape(-1, columns).tolist()


def _description(folder: Path) -> dict[str, object]:
    return json.loads((folder / "records.json").read_text())


# Column 1 holds 10, missing, 10, 11, 10, 4294967295; column 2 holds 255, 255, missing, 0, 256, 255.
@pytest.mark.parametrize(
    ("flags", "dense", "first", "second", "vocab_sizes"),
    [
        # Missing is the value 0. First appearances: 10, 0, 11, 4294967295 and 255, 0, 256.
        (["--rules=dlrm"], DENSE, [0, 1, 0, 2, 0, 3], [0, 0, 1, 1, 2, 0], [4, 3]),
        # The default modulo of 40,000,000 leaves all but 4294967295 % 40000000 = 14967295.
        (["--rules=mlperf"], DENSE, [0, 1, 0, 2, 0, 3], [0, 0, 1, 1, 2, 0], [4, 3]),
        # Modulo 10: 0, 0, 0, 1, 0, 5 and 5, 5, 0, 0, 6, 5.
        (
            ["--rules=mlperf", "--max_table_rows=10"],
            DENSE, [0, 0, 0, 1, 0, 2], [0, 0, 1, 1, 2, 0], [3, 3],
        ),
        # Seen twice or more: 10 (3 times); 255 (3 times) and 0 (missing and 00000000).
        (
            ["--rules=dlrm", "--frequency_threshold=2"],
            DENSE, [1, 0, 1, 0, 1, 0], [1, 1, 2, 2, 0, 1], [2, 3],
        ),
        # The default threshold is 15: nothing stays.
        (["--rules=spark"], DENSE_SPARK, [0] * 6, [0] * 6, [1, 1]),
        # Missing is no value, so 0 is seen only once in column 2.
        (
            ["--rules=spark", "--frequency_threshold=2"],
            DENSE_SPARK, [1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1], [2, 2],
        ),
        # By count, then value: 10, 11, 4294967295 and 255, 0, 256; id 0 only for missing.
        (
            ["--rules=spark", "--frequency_threshold=0"],
            DENSE_SPARK, [1, 0, 1, 2, 1, 3], [1, 1, 0, 2, 3, 1], [4, 4],
        ),
        # Modulo 10, by count, then value: 0 (4 times; missing stays out), 1, 5 and 5, 0, 6.
        (
            ["--rules=spark", "--frequency_threshold=1", "--max_table_rows=10"],
            DENSE_SPARK, [1, 0, 1, 2, 1, 3], [1, 1, 0, 2, 3, 1], [4, 4],
        ),
    ],
)  # fmt: skip
def test_hand_worked_file(
    flags: list[str],
    dense: list[list[int]],
    first: list[int],
    second: list[int],
    vocab_sizes: list[int],
    tmp_path: Path,
) -> None:
    (tmp_path / "raw.tsv").write_bytes(HAND)
    output = tmp_path / "out"
    arguments = [str(tmp_path / "raw.tsv"), f"--output={output}", "--test_fraction=0.34"]
    assert main([*arguments, *SMALL, *flags]) == 0
    expected = [
        [label, *integers, *ids]
        for label, integers, *ids in zip_strict(LABELS, dense, first, second)
    ]
    # 0.34 of 6 rows is 2 whole rows.
    assert _records(output / "train_data.bin", 5) == expected[:4]
    assert _records(output / "test_data.bin", 5) == expected[4:]
    description = _description(output)
    assert description["vocab_sizes"] == vocab_sizes
    assert description["num_dense"] == 2
    assert description["dense_log_offset"] == (2.0 if dense is DENSE_SPARK else 1.0)
    assert (description["train_samples"], description["test_samples"]) == (4, 2)
    # Below 0: -3, -1, -2; below -1: -3 and -2.
    assert description["dense_values_raised"] == (2 if dense is DENSE_SPARK else 3)
    assert sorted(path.name for path in output.iterdir()) == [
        "checksums.json", "dictionary", "records.json", "test_data.bin", "train_data.bin",
    ]  # fmt: skip


def _reference(
    lines: list[str], rules: str, threshold: int, modulus: int | None, num_dense: int
) -> tuple[list[list[int]], list[int]]:
    """The same records by the definitions alone, one value at a time."""
    rows = [line.split("\t") for line in lines]
    spark = rules == "spark"
    columns: list[list[int]] = [[int(row[0]) for row in rows]]
    for column in range(1, 1 + num_dense):
        lowest = -1 if spark else 0
        columns.append([max(int(row[column] or 0), lowest) for row in rows])
    vocab_sizes = []
    for column in range(1 + num_dense, len(rows[0])):
        values = [
            None if spark and not row[column] else int(row[column] or "0", 16) % (modulus or 2**32)
            for row in rows
        ]
        counts = Counter(value for value in values if value is not None)
        kept = [value for value in counts if counts[value] >= threshold]
        if spark:
            kept.sort(key=lambda value: (-counts[value], value))
        first = 1 if spark or threshold > 0 else 0
        ids = {value: number for number, value in enumerate(kept, first)}
        columns.append([0 if value is None else ids.get(value, 0) for value in values])
        vocab_sizes.append(len(kept) + first)
    return [list(record) for record in zip_strict(*columns)], vocab_sizes


@pytest.mark.parametrize("rules", NAMED_RULES)
@pytest.mark.parametrize(("threshold", "modulus"), [(0, None), (3, None), (15, 997), (0, 5)])
@pytest.mark.parametrize("source", ["generated", "sample"])
def test_against_plain_python(
    source: str, rules: str, threshold: int, modulus: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "log.tsv"
    if source == "sample":
        if not SAMPLE.exists():
            pytest.skip(f"the real sample is not there: {SAMPLE.name}")
        path = SAMPLE
    else:
        print(f"seed {SEED}")
        sizes = (400, 3, 2000, 10, *[50] * 22)
        generate(path, 3000, SEED, ClickModelOptions(sizes, missing=0.2, negative=0.2))
    lines = path.read_text().splitlines()
    chosen = rules_by_name(rules, threshold, modulus)
    if modulus is None and rules == "mlperf":
        modulus = 40_000_000
    expected, vocab_sizes = _reference(lines, rules, threshold, modulus, 13)
    options = Options(chosen, split=SplitRule(validation=0.25), block_bytes=100_000)
    preprocess([path], tmp_path / "out", options)
    written = [
        record
        for name in ("train", "val", "test")
        for record in _records(tmp_path / "out" / f"{name}_data.bin", 40)
    ]
    assert written == expected
    assert _description(tmp_path / "out")["vocab_sizes"] == vocab_sizes


def test_same_bytes_however_the_rows_arrive(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    generate(tmp_path / "one.tsv", 700, SEED, ClickModelOptions((300, 40, 5), num_dense=3))
    generate(
        tmp_path / "many.tsv", 700, SEED, ClickModelOptions((300, 40, 5), num_dense=3), files=3
    )
    many = [tmp_path / f"many.{index}.tsv" for index in range(3)]
    text = (tmp_path / "one.tsv").read_bytes()
    zipped = tmp_path / "zipped.tsv.gz"
    # Two gzip members in one file, as concatenated downloads have.
    zipped.write_bytes(gzip.compress(text[:5000]) + gzip.compress(text[5000:]))
    (tmp_path / "unended.tsv").write_bytes(text.rstrip(b"\n"))
    (tmp_path / "windows.tsv").write_bytes(text.replace(b"\n", b"\r\n"))
    (tmp_path / "empty.tsv").write_bytes(b"")
    ways = [
        ([tmp_path / "one.tsv"], 16 << 20),
        ([tmp_path / "one.tsv"], 50),
        ([tmp_path / "one.tsv"], 4096),
        (many, 16 << 20),
        (many, 1000),
        ([zipped], 16 << 20),
        ([zipped], 777),
        ([tmp_path / "unended.tsv"], 4096),
        ([tmp_path / "windows.tsv"], 4096),
        ([many[0], tmp_path / "empty.tsv", *many[1:]], 4096),
    ]
    for rules in NAMED_RULES:
        options = Options(rules_by_name(rules, 2), criteo_schema(3, 3))
        results: set[tuple[object, ...]] = set()
        for number, (paths, block_bytes) in enumerate(ways):
            output = tmp_path / f"{rules}_{number}"
            preprocess(paths, output, replace(options, block_bytes=block_bytes))
            sizes = str(_description(output)["vocab_sizes"])
            results.add((
                (output / "train_data.bin").read_bytes(),
                (output / "test_data.bin").read_bytes(),
                sizes,
            ))  # fmt: skip
        assert len(results) == 1


def test_terabyte_split(tmp_path: Path) -> None:
    """Days of 2, 1 and 5 rows: 3 rows train, the first ceil(5/2) = 3 of the last day test."""
    days = [[10, 11], [12], [13, 14, 15, 16, 17]]
    for day, values in enumerate(days):
        text = "".join(f"{value % 2}\t{value}\t{value:x}\n" for value in values)
        (tmp_path / f"day_{day}").write_text(text)
    sources = [str(tmp_path / f"day_{day}") for day in range(3)]
    flags = ["--rules=dlrm", "--split=terabyte", "--num_dense=1", "--num_categorical=1"]
    output = tmp_path / "out"
    assert main([*sources, f"--output={output}", *flags]) == 0
    # Ids follow first appearance over all days, so id = value - 10; the vocabulary has all 8.
    expected = [[value % 2, value, value - 10] for value in range(10, 18)]
    assert _records(output / "train_data.bin", 3) == expected[:3]
    assert _records(output / "test_data.bin", 3) == expected[3:6]
    assert _records(output / "val_data.bin", 3) == expected[6:]
    description = _description(output)
    assert description["vocab_sizes"] == [8]
    assert description["rows_by_file"] == [2, 1, 5]
    assert description["validation_samples"] == 2
    # A later run without validation must not leave the old file beside its own.
    assert main([*sources, f"--output={output}", *flags[:1], *flags[2:]]) == 0
    assert not (output / "val_data.bin").exists()


def test_fractions() -> None:
    parts = split_by_fraction(100, 0.29, 0.1)
    assert [(part.name, part.start, part.stop) for part in parts] == [
        ("train", 0, 61), ("val", 61, 90), ("test", 90, 100),
    ]  # fmt: skip
    assert [part.name for part in split_by_fraction(100, 0.0, 0.1)] == ["train", "test"]
    # The binary product 0.29 * 100 lies below 29.
    assert tail_rows(100, 0.29) == 29
    assert tail_rows(9, 0.1) == 0
    with pytest.raises(ValueError, match="expected rows left for training, found 10 rows"):
        split_by_fraction(10, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"--test_fraction: expected a value in \[0, 1\)"):
        split_by_fraction(10, 0.5, 1.0)
    with pytest.raises(ValueError, match="expected rows in files before the last"):
        split_terabyte([10])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"1\t5\t3\ta", "expected 5 tab-separated fields, found 4"),
        (b"1\t5\t3\ta\tb\tc", "expected 5 tab-separated fields, found 6"),
        (b"1\t5\t3\ta\tb\t", "expected 5 tab-separated fields, found 6"),
        (b"", "expected 5 tab-separated fields, found 1"),
        (b"1\t5\t3\ta\tb\xff", "field 5 (categorical column 1): expected at most 8 hexadecimal"),
        (b"\t5\t3\ta\tb", "label: expected 0 or 1, found ''"),
        (b"2\t5\t3\ta\tb", "label: expected 0 or 1, found '2'"),
        (b"-1\t5\t3\ta\tb", "label: expected 0 or 1, found '-1'"),
        (b"x\t5\t3\ta\tb", "label: expected 0 or 1, found 'x'"),
        (b"1\t5.0\t3\ta\tb", "field 2 (dense column 0): expected an integer, found '5.0'"),
        (b"1\t5\tx\ta\tb", "field 3 (dense column 1): expected an integer, found 'x'"),
        (b"1\t+5\t3\ta\tb", "field 2 (dense column 0): expected an integer, found '+5'"),
        (b"1\t 5\t3\ta\tb", "field 2 (dense column 0): expected an integer, found ' 5'"),
        (b"1\t2147483648\t3\ta\tb", "field 2 (dense column 0): expected a 32-bit integer"),
        (b"1\t5\t-2147483649\ta\tb", "field 3 (dense column 1): expected a 32-bit integer"),
        (
            b"1\t5\t" + b"9" * 5000 + b"\ta\tb",
            "field 3 (dense column 1): expected a 32-bit integer",
        ),
        (b"1\t5\t3\tg\tb", "field 4 (categorical column 0): expected at most 8 hexadecimal"),
        (b"1\t5\t3\ta\t0x1", "field 5 (categorical column 1): expected at most 8 hexadecimal"),
        (b"1\t5\t3\ta\t+1", "field 5 (categorical column 1): expected at most 8 hexadecimal"),
        (b"1\t5\t3\ta\t-1", "field 5 (categorical column 1): expected at most 8 hexadecimal"),
        (
            b"1\t5\t3\t000000001\tb",
            "field 4 (categorical column 0): expected at most 8 hexadecimal",
        ),
        (
            b"1\t5\t3\t100000000\tb",
            "field 4 (categorical column 0): expected at most 8 hexadecimal",
        ),
        (b"1\t5\t3\ta\t\xff\xfe", "field 5 (categorical column 1): expected at most 8 hexadecimal"),
        (b'1\t5\t3\ta\t"b"', "field 5 (categorical column 1): expected at most 8 hexadecimal"),
    ],
)
@pytest.mark.parametrize("line", [1, 4, 6])
def test_bad_row_is_named(
    row: bytes, message: str, line: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of two files has one bad row, at its start, inside or at its end."""
    (tmp_path / "good.tsv").write_bytes(HAND)
    lines = HAND.splitlines()
    lines[line - 1] = row
    bad = tmp_path / "bad.tsv"
    bad.write_bytes(b"\n".join([*lines, b""]))
    output = tmp_path / "out"
    arguments = [str(tmp_path / "good.tsv"), str(bad), f"--output={output}", "--rules=dlrm"]
    assert main([*arguments, *SMALL]) == 1
    error = capsys.readouterr().err
    assert f"{bad}, line {line}: {message}" in error
    assert error.count("\n") == 1
    # What was finished before is kept for the next attempt; nothing has a final name.
    assert {path.name for path in output.iterdir()} <= {"partial"}


@pytest.mark.parametrize("block_bytes", [40, 16 << 20])
def test_bad_row_has_the_same_line_number_in_every_block_size(
    block_bytes: int, tmp_path: Path
) -> None:
    path = tmp_path / "bad.tsv"
    path.write_bytes(HAND * 50 + b"1\t5\tx\ta\tb\n" + HAND + b"nonsense\n")
    options = Options(rules_by_name("dlrm"), criteo_schema(2, 2), block_bytes=block_bytes)
    with pytest.raises(ValueError, match=r"line 301: field 3 \(dense column 1\)"):
        preprocess([path], tmp_path / "out", options)


def test_a_column_without_a_name_is_counted() -> None:
    """A header may leave a name empty, as that of an index column."""
    schema = parse_user_schema(
        {"format": "csv", "columns": ["y", "", "a"], "label": "y", "categorical": ["a"]}
    ).schema
    assert schema.fault(b'1,"0",a') == "field 2: expected an unquoted field, found '\"0\"'"
    assert schema.fault(b"1,0,x") == "column a: expected at most 8 hexadecimal digits, found 'x'"


def test_an_earlier_result_survives_a_failed_run(tmp_path: Path) -> None:
    (tmp_path / "good.tsv").write_bytes(HAND)
    (tmp_path / "bad.tsv").write_bytes(HAND + b"nonsense\n")
    options = Options(rules_by_name("dlrm"), criteo_schema(2, 2))
    preprocess([tmp_path / "good.tsv"], tmp_path / "out", options)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert len(before) == 6
    with pytest.raises(ValueError, match="line 7"):
        preprocess([tmp_path / "bad.tsv"], tmp_path / "out", options)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


@given(
    integer=st.text("0123456789+-. _ex", max_size=6),
    hexadecimal=st.text("0189abcfABFgx+- _.", max_size=10),
    label=st.text("01+- ", max_size=3),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_fields_are_accepted_exactly_when_well_formed(
    integer: str, hexadecimal: str, label: str
) -> None:
    """Neither the compiled loop's doubts nor Polars' leniency may show."""
    good = (
        bool(re.fullmatch(r"-?[0-9]+", label))
        and int(label) in (0, 1)
        and bool(re.fullmatch(r"(-?[0-9]+)?", integer))
        and bool(re.fullmatch(r"[0-9a-fA-F]{0,8}", hexadecimal))
    )
    text = f"0\t1\ta\n{label}\t{integer}\t{hexadecimal}\n".encode()
    path = Path("log.tsv")
    block = TextBlock(0, 1, text, len(text), lines=2, offset=len(text))
    batch = LogParser([path], criteo_schema(1, 1)).parse(block)
    assert batch.bad_rows == (not good)
    if not good:
        assert batch.first_bad_rows[0].startswith("log.tsv, line 2: ")
        return
    expected = [[0, int(label)], [1, int(integer or 0)], [10, int(hexadecimal or "0", 16)]]
    assert batch.columns.view(np.uint32).tolist() == np.array(expected).astype(np.uint32).tolist()
    assert batch.missing[:, 0].tolist() == [False, not hexadecimal]
    assert batch.missing_counts.tolist() == [not hexadecimal]


@pytest.mark.parametrize("place", range(8))
def test_every_byte_as_a_digit(place: int) -> None:
    """The word of eight digits against Python's own conversion, upper and lower case."""
    for byte in range(256):
        digits = bytearray(b"89aFc0E7")
        digits[place] = byte
        text = b"1\t5\t%s\n" % digits
        block = TextBlock(0, 1, text, len(text), text.count(b"\n"), len(text))
        parsed = LogParser([Path("log.tsv")], criteo_schema(1, 1)).parse(block)
        field = digits.removesuffix(b"\r")  # which belongs to the line end
        good = bool(re.fullmatch(rb"[0-9a-fA-F]{7,8}", field))
        assert parsed.bad_rows == (not good), text
        if good:
            assert parsed.columns[2].view(np.uint32).tolist() == [int(field, 16)]


def test_a_bad_row_comes_before_later_damage(tmp_path: Path) -> None:
    """Blocks are parsed ahead, but errors come in the order of the rows."""
    path = tmp_path / "log.tsv.gz"
    text = HAND + b"nonsense\n" + HAND * 20_000
    path.write_bytes(gzip.compress(text, 1)[:-20])
    options = Options(rules_by_name("dlrm"), criteo_schema(2, 2), block_bytes=len(text) // 2)
    with pytest.raises(ValueError, match="line 7: expected 5 tab-separated fields"):
        preprocess([path], tmp_path / "out", options)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip"])
def test_damaged_gzip_is_named(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.tsv.gz"
    content = bytearray(gzip.compress(HAND * 1000))
    if damage == "cut":
        del content[-20:]
    elif damage == "flipped":
        content[-6] ^= 1  # in the CRC-32
    else:
        content[:2] = b"PK"
    path.write_bytes(content)
    assert main([str(path), f"--output={tmp_path / 'out'}", "--rules=dlrm", *SMALL]) == 1
    error = capsys.readouterr().err
    assert f"{path}: expected a whole gzip file" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frequency_threshold=-1"], "--frequency_threshold: expected 0 or more, found -1"),
        (["--max_table_rows=0"], "--max_table_rows: expected 1 to 2147483647, found 0"),
        (["--test_fraction=1.5"], "--test_fraction: expected a value in [0, 1), found 1.5"),
        (["--test_fraction=0.5", "--validation_fraction=0.5"], "rows left for training"),
        (["--split=terabyte"], "expected rows in files before the last one"),
        (["--num_categorical=0"], "expected at least 0 and 1"),
    ],
)
def test_bad_options_get_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw.tsv").write_bytes(HAND)
    arguments = [str(tmp_path / "raw.tsv"), f"--output={tmp_path / 'out'}", "--rules=dlrm"]
    assert main([*arguments, *SMALL, *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


def test_help_says_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    entries = re.findall(r"^  (--\w+)(.*(?:\n {4,}.*)*)", capsys.readouterr().out, re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in entries}
    for name, text in texts.items():
        assert name in ("--output", "--rules") or re.search(r"\(default: [^()]+\)$", text), name
    assert "fraction of the rows for test" in texts["--test_fraction"]
    assert texts["--test_fraction"].endswith("(default: 0.1)")
    assert texts["--part_mib"].endswith("(default: 1024)")


def test_no_rows_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.tsv").write_bytes(b"")
    output = f"--output={tmp_path / 'out'}"
    assert main([str(tmp_path / "empty.tsv"), output, "--rules=dlrm"]) == 1
    assert "expected rows, found none" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.tsv"), output, "--rules=dlrm"]) == 1
    assert "absent.tsv" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_last_line_reports_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw.tsv").write_bytes(HAND)
    assert main([str(tmp_path / "raw.tsv"), f"--output={tmp_path}", "--rules=spark", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 dense values below -1 raised to -1" in lines
    assert re.fullmatch(r"6 rows in [\d.]+ s, [\d,]+ rows/s", lines[-1])


def test_reader_stops_when_its_consumer_does(tmp_path: Path) -> None:
    (tmp_path / "raw.tsv").write_bytes(HAND * 1000)
    blocks = read_blocks([tmp_path / "raw.tsv"], criteo_schema(2, 2), 100)
    first = next(blocks)
    assert (first.file, first.line) == (0, 1)
    blocks.close()


@pytest.mark.parametrize("spread", [3, 1000, 10**5, 2**32])
def test_dictionary_against_a_dict(spread: int) -> None:
    """Ids, values and counts over many batches, through several growths of the table."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    dictionary = Dictionary()
    expected: dict[int, int] = {}
    counts: Counter[int] = Counter()
    for rows in (0, 1, 5, 3000, 20_000, 7, 40_000):
        values = rng.integers(0, spread, rows, dtype=np.uint64).astype(np.uint32)
        # Multiples of a power of two crowd into neighbouring slots.
        values[::3] <<= np.uint32(7)
        ids = values.copy()
        dictionary.encode(ids)
        assert ids.tolist() == [expected.setdefault(v, len(expected)) for v in values.tolist()]
        counts.update(values.tolist())
    assert dictionary.values.tolist() == list(expected)
    assert dictionary.counts.tolist() == [counts[value] for value in expected]
    assert len(dictionary) == len(expected)
