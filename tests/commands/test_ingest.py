"""Both engines of ingest: a file worked out by hand, and the same bytes from odd logs."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import split_bin
from dlrm.formats.checksums import read_checksums, sum_of
from dlrm.formats.zip_strict import zip_strict
from preprocess.__main__ import main
from preprocess.rules import shuffle_key
from preprocess.user_schema import parse_user_schema, read_user_schema
from tests.support.processes import ROOT
from tests.support.spark_session import (  # noqa: F401
    ENGINES,
    contents,
    needs_spark,
    session,
    small_pieces,
)

SEED = 20
SMALL = ["--num_dense=2", "--num_categorical=2"]
# .ci/run says what is left out of the other profile.
pytestmark = [pytest.mark.one_profile, pytest.mark.usefixtures("session")]

# label, two integers, two hashes. As numbers the first hash is
#   10, missing, 10, 11, 10, 4294967295, 11, 12, missing, 40000010, 13
# and the second 255, 255, missing, 0, 256, 255, 256, missing, 10000, 255, 1.
HAND = [
    "1\t5\t-3\ta\tff",
    "0\t\t7\t\tFF",
    "0\t-1\t0\tA\t",
    "1\t2\t-2\tB\t00000000",
    "0\t3\t\ta\t100",
    "1\t0\t1\tffffffff\tff",
    "0\t10\t10\tb\t100",
    "0\t-5\t2\tc\t",
    "1\t1\t1\t\t2710",
    "0\t4\t4\t2625a0a\tff",
    "1\t6\t6\td\t1",
]
LABELS = [1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1]
# Missing reads 0; negative values become 0, or for spark those below -1 become -1.
FIRST, SECOND = [5, 0, 0, 2, 3, 0, 10, 0, 1, 4, 6], [0, 7, 0, 0, 0, 1, 10, 2, 1, 4, 6]
FIRST_SPARK, SECOND_SPARK = (
    [5, 0, -1, 2, 3, 0, 10, -1, 1, 4, 6],
    [-1, 7, 0, -1, 0, 1, 10, 2, 1, 4, 6],
)
CASES = [
    # Missing is the value 0. First appearances: 10, 0, 11, 4294967295, 12, 40000010, 13
    # and 255, 0 (row 2, missing), 256, 10000, 1.
    (
        ["--rules=dlrm"],
        [0, 1, 0, 2, 0, 3, 2, 4, 1, 5, 6], [0, 0, 1, 1, 2, 0, 2, 1, 3, 0, 4], [7, 5],
    ),
    # Modulo 40,000,000: 40000010 is 10 again, 4294967295 is 14967295.
    (
        ["--rules=mlperf"],
        [0, 1, 0, 2, 0, 3, 2, 4, 1, 0, 5], [0, 0, 1, 1, 2, 0, 2, 1, 3, 0, 4], [6, 5],
    ),
    # Three times or more: 10 (rows 0, 2, 4); 255 (rows 0, 1, 5, 9) and 0 (2, 3, 7).
    (
        ["--rules=dlrm", "--frequency_threshold=3"],
        [1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0], [1, 1, 2, 2, 0, 1, 0, 2, 0, 1, 0], [2, 3],
    ),
    # With the modulus 10 is there four times (rows 0, 2, 4, 9).
    (
        ["--rules=mlperf", "--frequency_threshold=4"],
        [1, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0], [2, 2],
    ),
    # The default threshold is 15: nothing stays.
    (["--rules=spark"], [0] * 11, [0] * 11, [1, 1]),
    # Missing is no value. Twice or more: 10, 11 and 255, 256.
    (
        ["--rules=spark", "--frequency_threshold=2"],
        [1, 0, 1, 2, 1, 0, 2, 0, 0, 0, 0], [1, 1, 0, 0, 2, 1, 2, 0, 0, 1, 0], [3, 3],
    ),
    # By count, then value: 10, 11, then 12, 13, 40000010, 4294967295; 255, 256, then 0, 1, 10000.
    (
        ["--rules=spark", "--frequency_threshold=0"],
        [1, 0, 1, 2, 1, 6, 2, 3, 0, 5, 4], [1, 1, 0, 3, 2, 1, 2, 0, 5, 1, 4], [7, 6],
    ),
    # Modulo 10: 0 -, 0 1 0 5 1 2 - 0 3, so 0 (4 times), 1, 2, 3, 5; and 5 5 - 0 6 5 6 - 0 5 1, so
    # 5, then 0 and 6 that are there twice each, then 1.
    (
        ["--rules=spark", "--frequency_threshold=1", "--max_table_rows=10"],
        [1, 0, 1, 2, 1, 5, 2, 3, 0, 1, 4], [1, 1, 0, 2, 3, 1, 3, 0, 2, 1, 4], [6, 5],
    ),
]  # fmt: skip


def _records(path: Path, columns: int) -> list[list[int]]:
    return np.fromfile(path, "<i4").reshape(-1, columns).tolist()


def _description(folder: Path) -> dict[str, object]:
    return json.loads((folder / "records.json").read_text())


@pytest.mark.parametrize(("flags", "first", "second", "vocab_sizes"), CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_eleven_rows(
    engine: str,
    flags: list[str],
    first: list[int],
    second: list[int],
    vocab_sizes: list[int],
    tmp_path: Path,
) -> None:
    # Two files, the second one compressed, with a bad row in each that is left out.
    (tmp_path / "a.tsv").write_text("\n".join([*HAND[:4], "1\t5\t-3\ta", *HAND[4:6]]))
    rest = "\r\n".join(["2\t5\t-3\ta\tff", *HAND[6:], ""])
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(rest.encode()))
    output = tmp_path / "out"
    logs = [str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv.gz")]
    # 0.2 of 11 rows is 2 whole rows.
    common = [f"--engine={engine}", "--test_fraction=0.2", "--max_bad_rows=2", *SMALL]
    assert main([*logs, f"--output={output}", *common, *flags]) == 0
    spark = flags[0] == "--rules=spark"
    dense = (FIRST_SPARK, SECOND_SPARK) if spark else (FIRST, SECOND)
    expected = [list(row) for row in zip_strict(LABELS, *dense, first, second)]
    assert _records(output / "train_data.bin", 5) == expected[:9]
    assert _records(output / "test_data.bin", 5) == expected[9:]
    content = _description(output)
    assert content["vocab_sizes"] == vocab_sizes
    assert content["rows_by_file"] == [6, 5]
    assert content["positives"] == 5
    # -3, -1, -2, -5 are below 0; -3, -2, -5 below -1.
    assert content["dense_values_raised"] == (3 if spark else 4)
    assert content["missing_categories"] == [2, 2]
    assert content["bad_rows"] == 2
    assert content["first_bad_rows"] == [
        f"{logs[0]}, line 5: expected 5 tab-separated fields, found 4",
        f"{logs[1]}, line 1: label: expected 0 or 1, found '2'",
    ]
    for table, ids in enumerate((first, second)):
        frame = pl.read_parquet(output / f"dictionary/table_{table}.parquet")
        start = int(content["vocab_sizes"][table]) - frame.height
        assert frame["id"].to_list() == list(range(start, start + frame.height))
        for number, count in zip_strict(frame["id"].to_list(), frame["count"].to_list()):
            assert count == ids.count(number)
    sums = read_checksums(output)
    assert sums == {n: sum_of(output / n) for n in ("train_data.bin", "test_data.bin")}


@pytest.mark.parametrize("engine", ENGINES)
def test_eleven_rows_by_a_schema(engine: str, tmp_path: Path) -> None:
    """Days 1 train, 2 validate, 3 test; one hash with a threshold, one with a modulus, one text."""
    days = [1, 1, 2, 1, 3, 1, 1, 2, 1, 3, 1]
    texts = ["x y", "ä", "", "x y", "z", "ä", "", "x y", "z", "ä", "x y"]
    lines = [
        f"{day},{row.replace(chr(9), ',')},{text},ignored"
        for day, row, text in zip_strict(days, HAND, texts)
    ]
    # Bad: text that is not UTF-8, also where it is ignored; a quoted field; another number.
    bad = [b"1,0,1,1,a,b,\xe4,", b"1,0,1,1,a,b,t,\xff", b'1,0,1,1,a,b,"t",', b"1,0,1,1,a,+b,t,"]
    log = "\n".join(["day,y,d1,d2,c1,c2,t,rest", *lines[:5]]).encode()
    (tmp_path / "log.csv").write_bytes(b"\n".join([log, *bad, "\n".join(lines[5:]).encode()]))
    (tmp_path / "schema.yaml").write_text("""
format: csv
header: true
columns: [day, y, d1, d2, c1, c2, t, rest]
label: y
dense: [{name: d1, lowest: -1}, d2]
dense_log_offset: 2
categorical: [{name: c2, modulo: 10}, {name: c1, threshold: 2}, {name: t, type: text}]
split: {by: column, column: day, validation: "2", test: ["3"]}
""")
    output = tmp_path / "out"
    flags = ["--rules=generic", f"--schema={tmp_path / 'schema.yaml'}", f"--engine={engine}"]
    assert main([str(tmp_path / "log.csv"), f"--output={output}", "--max_bad_rows=4", *flags]) == 0
    assert _description(output)["first_bad_rows"] == [
        f"{tmp_path / 'log.csv'}, line {line}: {fault}"
        for line, fault in (
            (7, r"column t: expected UTF-8 text, found '\\xe4'"),
            (8, r"column rest: expected UTF-8 text, found '\\xff'"),
            (9, "column t: expected an unquoted field, found '\"t\"'"),
            (10, "column c2: expected at most 8 hexadecimal digits, found '+b'"),
        )
    ]
    # c2 modulo 10, missing 0: 5 5 0 0 6 5 6 0 0 5 1, by first appearance.
    c2 = [0, 0, 1, 1, 2, 0, 2, 1, 1, 0, 3]
    # c1 twice or more: 10 (3 times), 0 (missing, twice), 11 (twice); they follow id 0.
    c1 = [1, 2, 1, 3, 1, 0, 3, 0, 2, 0, 0]
    # Text: "x y", "ä", missing, "z" by first appearance.
    t = [0, 1, 2, 0, 3, 1, 2, 0, 3, 1, 0]
    rows = [list(row) for row in zip_strict(LABELS, FIRST_SPARK, SECOND, c2, c1, t)]
    for name, day in (("train", 1), ("val", 2), ("test", 3)):
        expected = [row for row, own in zip_strict(rows, days) if own == day]
        assert _records(output / f"{name}_data.bin", 6) == expected
    assert _description(output)["vocab_sizes"] == [4, 4, 4]
    # CRC-32 of the UTF-8 text is the value; published for "123456789": cbf43926.
    frame = pl.read_parquet(output / "dictionary/table_2.parquet")
    assert frame["value"].to_list()[2] == 0
    assert frame["count"].to_list() == [4, 3, 2, 2]


@pytest.mark.parametrize("engine", ENGINES)
def test_parquet_and_text_give_the_same(engine: str, tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text("\n".join(HAND))
    cells = [[cell or None for cell in row.split("\t")] for row in HAND]
    frame = pl.DataFrame(cells, schema=["y", "d1", "d2", "c1", "c2"], orient="row")
    frame = frame.with_columns(pl.col("y", "d1", "d2").cast(pl.Int64), pl.lit(0.5).alias("more"))
    frame.write_parquet(tmp_path / "log.parquet")
    results = []
    for kind in ("tsv", "parquet"):
        schema = tmp_path / f"{kind}.yaml"
        schema.write_text(
            f"format: {kind}\ncolumns: [y, d1, d2, c1, c2]\nlabel: y\n"
            "dense: [d1, d2]\ncategorical: [c1, c2]\n"
        )
        flags = ["--rules=generic", f"--schema={schema}", f"--engine={engine}"]
        assert main([str(tmp_path / f"log.{kind}"), f"--output={tmp_path / kind}", *flags]) == 0
        results.append((tmp_path / kind / "train_data.bin").read_bytes())
    assert results[0] == results[1]


def _mix(word: int) -> int:
    """SplitMix64's finaliser on Python's integers."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


@pytest.mark.parametrize("engine", ENGINES)
def test_shuffled_rows_stand_in_the_order_of_their_keys(engine: str, tmp_path: Path) -> None:
    step = 0x9E3779B97F4A7C15
    (tmp_path / "log.tsv").write_text("".join(f"0\t{row}\ta\n" for row in range(500)))
    flags = ["--rules=dlrm", "--num_dense=1", "--num_categorical=1", "--shuffle=-5"]
    output = tmp_path / "out"
    arguments = [str(tmp_path / "log.tsv"), f"--output={output}", f"--engine={engine}", *flags]
    assert main(arguments) == 0
    seed = _mix((-5 + 1) * step % 2**64)
    keys = {row: _mix((row * step + seed) % 2**64) for row in range(500)}
    expected = sorted(range(450), key=keys.__getitem__)
    assert [row[1] for row in _records(output / "train_data.bin", 3)] == expected
    assert [row[1] for row in _records(output / "test_data.bin", 3)] == list(range(450, 500))
    assert shuffle_key(-5, np.arange(500, dtype=np.uint64)).tolist() == list(keys.values())


def _odd_log(generator: random.Random, rows: int) -> str:
    """A log with every sort of bad row, long zeros, line ends of both kinds, empty fields."""
    lines = []
    for _ in range(rows):
        number = generator.choice(["", "-3", "0", "-0", "007", "0" * 25 + "5", "2147483647"])
        fields = [
            generator.choice(["0", "1", "00", "-0", "01"]),
            number,
            str(generator.randrange(-5, 99)),
            generator.choice(["", "0", "FF", "0ff", f"{generator.randrange(2**32):x}"]),
            f"{int(generator.paretovariate(0.7)) % 2**32:08x}",
        ]
        if generator.random() < 0.05:
            bad = ["x", "+1", " 1", "1 ", "1.0", "2147483648", "123456789a", "\u00fc", "-", '"1"']
            fields[generator.randrange(5)] = generator.choice([*bad, "\t", "2"])
        lines.append("\t".join(fields) + generator.choice(["", "", "\r"]))
    lines.insert(rows // 2, "")
    return "\n".join(lines)


def _every_character() -> str:
    """Each ASCII character as and in a label, an integer and a hash; most such rows are bad."""
    lines = []
    for character in map(chr, range(1, 128)):
        if character not in "\t\n":
            for position, before in ((0, ""), (1, ""), (1, "1"), (3, ""), (3, "1")):
                fields = ["0", "1", "2", "a", "b"]
                fields[position] = before + character
                lines.append("\t".join(fields))
    return "\n".join(lines)


@pytest.mark.spark
@needs_spark
@pytest.mark.parametrize(
    "flags",
    [
        ["--rules=mlperf", "--max_table_rows=1000", "--columns", "--pack_ids", "--shuffle=3"],
        ["--rules=dlrm", "--frequency_threshold=3", "--split=terabyte"],
        ["--rules=spark", "--frequency_threshold=2", "--validation_fraction=0.3", "--shuffle=1"],
    ],
)
def test_same_bytes_from_odd_logs(flags: list[str], tmp_path: Path, small_pieces: None) -> None:  # noqa: F811
    print(f"seed {SEED}")
    generator = random.Random(f"{SEED} {flags}")
    (tmp_path / "a.tsv").write_text(_odd_log(generator, 700), encoding="utf-8")
    (tmp_path / "b.tsv").write_bytes(b"")
    odd = f"{_odd_log(generator, 400)}\n{_every_character()}\n"
    text = odd.encode() + b"\xff\xfe\n"
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(text[:900]) + gzip.compress(text[900:]))
    logs = [str(tmp_path / name) for name in ("a.tsv", "b.tsv", "c.tsv.gz")]
    for engine in ("polars", "spark"):
        arguments = [*logs, f"--output={tmp_path / engine}", f"--engine={engine}", *SMALL]
        assert main([*arguments, "--max_bad_rows=1000", *flags]) == 0
    polars, spark = contents(tmp_path / "polars"), contents(tmp_path / "spark")
    assert polars.keys() == spark.keys()
    assert [name for name in polars if polars[name] != spark[name]] == []
    assert json.loads(polars["records.json"])["bad_rows"] > 20


@pytest.mark.parametrize("engine", ENGINES)
def test_columns_are_what_split_bin_makes(engine: str, tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text("\n".join(HAND))
    common = [str(tmp_path / "log.tsv"), "--rules=spark", f"--engine={engine}", *SMALL]
    assert main([*common, f"--output={tmp_path / 'records'}"]) == 0
    for pack in ([], ["--pack_ids"]):
        columns, split = tmp_path / f"columns{len(pack)}", tmp_path / f"split{len(pack)}"
        assert main([*common, f"--output={columns}", "--columns", *pack]) == 0
        for part in ("train", "test"):
            record_file = str(tmp_path / "records" / f"{part}_data.bin")
            assert split_bin.main([record_file, str(split / part), *pack]) == 0
            assert contents(columns / part) == contents(split / part)
        assert not list(columns.glob("*.bin"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rules", ["dlrm", "spark"])
def test_an_old_dictionary_maps_new_rows(engine: str, rules: str, tmp_path: Path) -> None:
    """What the old log had keeps its id; what it lacked, and missing under spark, gets id 0."""
    (tmp_path / "old.tsv").write_text("".join(f"0\t1\t{value:x}\n" for value in (7, 7, 8, 0, 9)))
    (tmp_path / "new.tsv").write_text(
        "".join(f"1\t1\t{v}\n" for v in ("9", "8", "b", "", "7", "b"))
    )
    shape = ["--num_dense=1", "--num_categorical=1", "--test_fraction=0", "--frequency_threshold=1"]
    flags = [f"--rules={rules}", f"--engine={engine}", *shape]
    old, new = tmp_path / "old", tmp_path / "new"
    assert main([str(tmp_path / "old.tsv"), f"--output={old}", *flags]) == 0
    assert main([str(tmp_path / "new.tsv"), f"--output={new}", f"--dictionary={old}", *flags]) == 0
    # dlrm by appearance: 7, 8, 0, 9 are 1 to 4, and missing is the value 0. spark by count and
    # value: 7, 0, 8, 9 are 1 to 4.
    expected = {"dlrm": [4, 2, 0, 3, 1, 0], "spark": [4, 3, 0, 0, 1, 0]}[rules]
    assert [row[2] for row in _records(new / "train_data.bin", 3)] == expected
    content = _description(new)
    assert (content["vocab_sizes"], content["unknown_categories"]) == ([5], [2])
    assert contents(new / "dictionary") == contents(old / "dictionary")


@pytest.mark.parametrize("engine", ENGINES)
def test_too_many_bad_rows_are_refused_and_named(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.tsv"
    log.write_text("\n".join([*HAND[:2], "x", *HAND[2:], "1\t2\t3\t4\t5\t6", "1\ty\t3\ta\tb"]))
    flags = ["--rules=dlrm", f"--engine={engine}", *SMALL]
    assert main([str(log), f"--output={tmp_path / 'out'}", "--max_bad_rows=2", *flags]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "expected at most --max_bad_rows=2 bad rows, found more" in error
    for line in (3, 13, 14):
        assert f"{log}, line {line}: " in error
    assert not (tmp_path / "out" / "records.json").exists()
    assert main([str(log), f"--output={tmp_path / 'out'}", *flags]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {log}, line 3: expected 5 tab-separated fields, found 1"
    # Another limit is no other command: what was read stays.
    assert main([str(log), f"--output={tmp_path / 'out'}", "--max_bad_rows=3", *flags]) == 0


def test_the_example_schema_is_one() -> None:
    user = read_user_schema(ROOT / "preprocess" / "schema_example.yaml")
    assert [field.role for field in user.schema.fields] == [
        "split", "label", "dense", "dense", "categorical", "categorical",
    ]  # fmt: skip
    assert user.split.tags == {"6": 1, "7": 2}
    assert (user.rules.lowest(0), user.rules.lowest(1)) == (0, -1)
    assert user.rules.dense_log_offset > 1, "the logarithm of the lowest value must exist"
    assert (user.rules.threshold(0), user.rules.modulus(0), user.rules.modulus(1)) == (
        3,
        1000,
        None,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "found"),
        ({"format": "xml"}, "format: expected one of tsv, csv, parquet, found 'xml'"),
        ({"categorical": []}, "categorical: expected at least one column"),
        ({"dense": [{"name": "a", "log": 1}]}, "dense: expected lowest, name"),
        ({"threshold": -1}, "threshold: expected an integer from 0"),
        ({"colour": 1}, "found colour"),
        ({"dense_log_offset": "1"}, "dense_log_offset: expected a number, found '1'"),
        ({"dense_log_offset": 0}, "expected a finite number above 0, as values of column a"),
        ({"dense_log_offset": float("nan")}, "found nan; raise it"),
        ({"dense_log_offset": float("inf")}, "found inf"),
        ({"lowest": -1}, "above 1, as values of column a may be -1, found 1.0; raise it"),
        ({"dense": [{"name": "a", "lowest": -5}], "dense_log_offset": 5}, "above 5"),
        ({"categorical": ["y"]}, "expected each column once"),
        ({"categorical": ["z"]}, "columns: expected z among them"),
    ],
)
def test_a_wrong_schema_is_named(change: dict[str, object], message: str) -> None:
    good = {"columns": ["y", "a", "b"], "label": "y", "dense": ["a"], "categorical": ["b"]}
    assert parse_user_schema(good).schema.categorical == (2,)
    with pytest.raises(ValueError, match="expected") as caught:
        parse_user_schema({**good, **change})
    assert message in str(caught.value)
