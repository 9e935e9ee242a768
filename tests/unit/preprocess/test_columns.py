"""Logs with columns of any kind: rows worked out by hand, every bad input, guessed schemas."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from preprocess import guess
from preprocess.__main__ import main
from preprocess.columns import MEAN, QUANTILE, STANDARDISE, DenseColumn
from preprocess.transforms import learn, natural_log, sample_stride
from preprocess.user_schema import parse_user_schema

SEED = 23

HAND = '''age,work,income,hours,when
39, State-gov, <=50K,40.5,2024-01-01 10:00:00
50, "Self, ""x""", >50K,1e-3,2024-01-02 23:00:00
38, ?, <=50K,,2024-01-03
53, Private, >50K,7,2024-02-29T05:00
28, Private, <=50K,-2,2000-01-01
37, Private, >50K.,16,1999-12-31 01:00
'''
SCHEMA: dict[str, Any] = {
    "format": "csv",
    "header": True,
    "dense_type": "float32",
    "columns": ["age", "work", "income", "hours", "when"],
    "absent": ["?"],
    "label": {"name": "income", "positive": [">50K", ">50K."], "negative": ["<=50K"]},
    "dense": [
        {"name": "age", "transform": "standardise"},
        {"name": "hours", "transform": "log", "offset": 2, "missing": "mean"},
        {"name": "old", "column": "age", "transform": "quantile", "buckets": 3},
    ],
    "categorical": [
        "work",
        {"name": "hour", "column": "when", "type": "hour"},
        {"name": "weekday", "column": "when", "type": "weekday"},
        {"name": "hashed", "column": "work", "type": "text", "modulo": 100},
    ],
    "split": {"by": "fraction", "test": 0.34},
}


def _run(folder: Path, text: bytes | str, schema: dict[str, Any], *flags: str) -> int:
    suffix = {"jsonl": "jsonl", "parquet": "parquet"}.get(schema.get("format", "tsv"), "csv")
    log = folder / f"log.{suffix}"
    if text:
        log.write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema), encoding="utf-8")
    arguments = ["--rules=generic", f"--schema={folder / 'schema.yaml'}", "--columns"]
    return main([str(log), f"--output={folder / 'out'}", *arguments, *flags])


def _columns(folder: Path, part: str, dense: int, tables: int) -> tuple[Any, Any, Any]:
    split = folder / "out" / part
    labels = np.fromfile(split / "label.bin", "<i4")
    floats = np.fromfile(split / "dense.bin", "<f4").reshape(-1, dense)
    return labels, floats, np.fromfile(split / "category.bin", "<i4").reshape(-1, tables)


def _bytes(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "records.json"
    }


def test_hand_worked_rows(tmp_path: Path) -> None:
    """Statistics are of the four training rows: ages 39, 50, 38, 53; hours 40.5, 0.001, 7."""
    assert _run(tmp_path, HAND, SCHEMA) == 0
    mean, deviation = 45.0, math.sqrt((36 + 25 + 49 + 64) / 4)
    hours = (40.5 + 0.001 + 7) / 3
    # The thirds of 38, 39, 50, 53 are at 39 and 50.
    expected = [
        [(39 - mean) / deviation, math.log(42.5), 0.5],
        [(50 - mean) / deviation, math.log(2.001), 1.0],
        [(38 - mean) / deviation, math.log(hours + 2), 0.0],
        [(53 - mean) / deviation, math.log(9), 1.0],
    ]
    labels, dense, ids = _columns(tmp_path, "train", 3, 4)
    assert labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(dense, expected, rtol=1e-7)
    # Missing is id 0. Monday, Tuesday, Wednesday, Thursday; hours 10, 23, 0, 5.
    assert ids.tolist() == [[1, 1, 1, 1], [2, 2, 2, 2], [0, 3, 3, 0], [3, 4, 4, 3]]
    labels, dense, ids = _columns(tmp_path, "test", 3, 4)
    assert labels.tolist() == [0, 1]
    # -2 is raised to -1, where the logarithm is 0.
    np.testing.assert_allclose(
        dense, [[-17 / deviation, 0, 0], [-8 / deviation, math.log(18), 0]], rtol=1e-6
    )
    # A Saturday and a Friday; hours 0 and 1.
    assert ids.tolist() == [[3, 3, 5, 3], [3, 5, 6, 3]]
    days = pl.read_parquet(tmp_path / "out" / "dictionary" / "table_2.parquet")
    assert days["value"].to_list() == [0, 1, 2, 3, 5, 4]
    texts = pl.read_parquet(tmp_path / "out" / "dictionary" / "table_0.parquet")
    assert texts["text"].to_list() == ["State-gov", 'Self, "x"', "Private"]
    metadata = json.loads((tmp_path / "out" / "train" / "metadata.json").read_text())
    assert metadata["dense_raw_type"] == "float32"
    assert metadata["dense_log"] is False
    assert (metadata["num_dense"], metadata["vocab_sizes"]) == (3, [4, 6, 7, 4])


def test_the_same_bytes_however_the_log_is_written(tmp_path: Path) -> None:
    """Byte-order mark, CRLF, another delimiter, blocks, JSON lines and Parquet change nothing."""
    rows = [[field.strip() for field in row] for row in _rows(HAND)]
    names, rows = rows[0], rows[1:]
    frame = pl.DataFrame(
        {name: [row[i] or None for row in rows] for i, name in enumerate(names)}
    ).cast({"age": pl.Int64, "hours": pl.Float64})
    ways: dict[str, tuple[bytes | str, dict[str, Any]]] = {
        "plain": (HAND, {}),
        "windows": (b"\xef\xbb\xbf" + HAND.replace("\n", "\r\n").encode(), {}),
        "tabs": ("\n".join("\t".join(row) for row in [names, *rows]), {"format": "tsv"}),
        "bars": (
            "\n".join("|".join(row) for row in [names, *rows]),
            {"delimiter": "|", "quoted": False},
        ),
        "json": (frame.write_ndjson(), {"format": "jsonl", "header": False}),
        "parquet": ("", {"format": "parquet", "header": False}),
    }
    found = {}
    for name, (text, change) in ways.items():
        folder = tmp_path / name
        folder.mkdir()
        if change.get("format") == "parquet":
            frame.write_parquet(folder / "log.parquet")
        assert _run(folder, text, {**SCHEMA, **change}) == 0, name
        found[name] = _bytes(folder)
    for name in ways:
        assert found[name] == found["plain"], name


def _rows(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines(), skipinitialspace=True))


def test_later_data_is_treated_as_the_first(tmp_path: Path) -> None:
    first, later = tmp_path / "first", tmp_path / "later"
    for folder in (first, later):
        folder.mkdir()
    assert _run(first, HAND, SCHEMA) == 0
    rows = HAND.splitlines()
    new = "\n".join([rows[0], "90, New, >50K,3,2024-01-01", rows[4], rows[1], rows[2], rows[5]])
    assert _run(later, new, SCHEMA, f"--dictionary={first / 'out'}") == 0
    _, dense, ids = _columns(first, "train", 3, 4)
    _, again, same = _columns(later, "train", 3, 4)
    # The rows of ages 53, 39, 50; the unknown text has id 0, the statistics are the old ones.
    np.testing.assert_array_equal(again[1:], dense[[3, 0, 1]])
    np.testing.assert_array_equal(same[1:, 0], ids[[3, 0, 1], 0])
    assert same[0, 0] == 0
    statistics = [path / "out" / "dictionary" / "columns.json" for path in (first, later)]
    assert statistics[0].read_text() == statistics[1].read_text()


def test_labels_by_threshold_and_by_one_set(tmp_path: Path) -> None:
    text = "\ufeff5,1,a\n3,2,b\n3.5,3,c\n0,4,a\n"  # a byte-order mark without a header
    schema = {
        "format": "csv", "dense_type": "float32", "columns": ["r", "x", "c"], "dense": ["x"],
        "categorical": ["c"], "split": {"by": "time", "column": "x", "test": 4},
    }  # fmt: skip
    for name, label, expected in (
        ("above", {"name": "r", "above": 3}, [1, 0, 1]),
        ("set", {"name": "r", "positive": [3, 5]}, [1, 1, 0]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        assert _run(folder, text, {**schema, "label": label}) == 0
        assert _columns(folder, "train", 1, 1)[0].tolist() == expected
        assert _columns(folder, "test", 1, 1)[1].tolist() == [[4.0]]


def test_many_rows_against_numpy(tmp_path: Path) -> None:
    """A bad row between; floats and texts against NumPy's own numbers."""
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    x = np.round(generator.normal(100, 50, 3000), 3)
    texts = [f"né {number}" for number in generator.zipf(1.3, 3000) % 1000]
    labels = generator.integers(0, 2, 3000)
    lines = [f"{y};{value!r};{text}" for y, value, text in zip(labels, x.tolist(), texts)]
    lines.insert(1700, "1;NaN;x")
    schema = {
        "format": "csv", "delimiter": ";", "dense_type": "float32", "columns": ["y", "x", "t"],
        "label": "y", "categorical": ["t"],
        "dense": [{"name": "x", "transform": "standardise", "clip": [0, 200]}],
    }  # fmt: skip
    flags = ("--max_bad_rows=1", "--block_mib=1")
    assert _run(tmp_path, "\n".join(lines), schema, *flags) == 0
    found, dense, ids = _columns(tmp_path, "train", 1, 1)
    clipped = np.clip(x, 0, 200)
    mean, deviation = clipped[:2700].mean(), clipped[:2700].std()
    expected_dense = (clipped[:2700] - mean) / deviation
    np.testing.assert_allclose(dense[:, 0], expected_dense, rtol=1e-5, atol=1e-6)
    assert found.tolist() == labels[:2700].tolist()
    numbers: dict[str, int] = {}
    expected = [numbers.setdefault(text, 1 + len(numbers)) for text in texts]
    assert ids[:, 0].tolist() == expected[:2700]


BAD_ROWS = [
    ("1,2.5,a,b", "expected 3 comma-separated fields, found 4; correct the line"),
    ("1", "expected 3 comma-separated fields, found 1"),
    ("", "expected 3 comma-separated fields, found 1"),
    ('1,2.5,"a', "expected quotes around whole fields that end on their line, found '1,2.5,\"a'"),
    ('1,2.5,a"b', "write a quote in a field twice, or say quoted: false"),
    ("1,NaN,a", "column x: expected a float32 number (list texts such as NA under absent), found"),
    ("1,inf,a", "found 'inf'"),
    ("1,0x10,a", "found '0x10'"),
    ("1,1_000,a", "found '1_000'"),
    ("1,1e39,a", "column x: expected a float32 number"),
    ("1,1e9999,a", "found '1e9999'"),
    ("1,12 3,a", "found '12 3'"),
    ("2,2.5,a", "label: expected 0 or 1 (for other labels, give positive or above in the schema)"),
    ("maybe,2.5,a", "found 'maybe'"),
    (",2.5,a", "label: expected 0 or 1"),
    (b"1,2.5,\xff", "expected UTF-8 text, found '1,2.5,\\\\xff'; convert the file to UTF-8"),
]  # fmt: skip
SMALL = {
    "format": "csv", "header": True, "dense_type": "float32", "columns": ["y", "x", "c"],
    "label": "y", "dense": ["x"], "categorical": ["c"],
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_ROWS)
def test_a_bad_row_is_named(
    line: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    text = b"y,x,c\n1,1,a\n%s\n0,2,b\n" % raw
    assert _run(tmp_path, text, SMALL) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {tmp_path / 'log.csv'}, line 3: "), error
    assert message in error, error
    assert "\n" not in error
    assert not (tmp_path / "out" / "train").exists()
    assert _run(tmp_path, text, SMALL, "--max_bad_rows=1", "--restart") == 0


@pytest.mark.parametrize("end", ["\n", "\r\n\r\n", "\n" * 2000])
def test_empty_lines_at_the_end_are_no_rows(
    end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the files of UCI; between rows an empty line is a bad row, also over many blocks."""
    text = "y,x,c\n1,1,a\n0,2,b\n"
    assert _run(tmp_path, text + end, SMALL) == 0
    assert _columns(tmp_path, "train", 1, 1)[1].tolist() == [[1.0], [2.0]]
    middle = f"{text}{end}0,3,c\n"
    assert _run(tmp_path, middle + end, SMALL, "--restart") == 1
    assert "line 4: expected 3 comma-separated fields, found 1" in capsys.readouterr().err


def test_empty_lines_between_rows_are_bad_also_at_the_end_of_a_block(tmp_path: Path) -> None:
    """The first block, of a mebibyte, ends amid the empty lines."""
    start = "y,x,c\n1,1,"
    start += "a" * ((1 << 20) - len(start) - 30) + "\n"
    text = start + "\n" * 60 + "0,2,b\n" + "\n" * 60
    assert _run(tmp_path, text, SMALL, "--block_mib=1", "--max_bad_rows=60") == 0
    assert json.loads((tmp_path / "out" / "records.json").read_text())["bad_rows"] == 60


BAD_FILES = [
    (b"", {}, "expected rows, found none"),
    (b"y,x,c\n", {}, "expected rows, found none"),
    (b"1,2,a\n", {}, "line 1: expected the header 'y,x,c', found '1,2,a'; correct the schema's"),
    (b"y,x,d\n1,2,a\n", {}, "expected the header 'y,x,c', found 'y,x,d'"),
    (gzip.compress(b"y,x,c\n1,2,a\n", mtime=0)[:-4], {}, "expected the header"),
    (b'{"y": 1,\n', {"format": "jsonl", "header": False}, "expected a JSON object, found"),
    (b"[1]\n", {"format": "jsonl", "header": False}, "write one object on each line"),
    (b"x", {"format": "parquet", "header": False}, "expected a Parquet file"),
    (
        b"y,x,c\n1,,a\n",
        {"dense": [{"name": "x", "missing": "refuse"}]},
        "not an empty field (missing: refuse), found ''",
    ),
    (
        b"y,x,c\n1,,a\n0,,b\n",
        {"dense": [{"name": "x", "missing": "mean"}], "split": {"by": "fraction", "test": 0}},
        "column x: expected numbers in the training rows to learn its mean from, found none",
    ),
    (
        b"y,x,c\n1,1,12g\n",
        {"categorical": [{"name": "c", "type": "hex"}]},
        "at most 8 hexadecimal digits (type: value takes any text), found '12g'",
    ),
    (
        b"y,x,c\n1,1,4294967296\n",
        {"categorical": [{"name": "c", "type": "integer"}]},
        "a 32-bit integer (type: value takes any text), found '4294967296'",
    ),
    (
        b"y,x,c\n1,1,2024-13-01\n",
        {"categorical": [{"name": "c", "type": "hour"}]},
        "a time: seconds since 1970 or YYYY-MM-DD HH:MM, found '2024-13-01'",
    ),
]


@pytest.mark.parametrize(("text", "change", "message"), BAD_FILES)
def test_a_bad_file_is_named(
    text: bytes,
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not text:
        (tmp_path / "log.csv").touch()
    assert _run(tmp_path, text, {**SMALL, **change}) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: "), error
    assert message in error, error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ["y", "z"]}, "label: expected one column, found 2: a model has one label"),
        ({"label": {"name": "y", "positives": [1]}}, "found positives; did you mean positive?"),
        ({"label": {"name": "y", "above": 1, "positive": [1]}}, "expected above, or positive"),
        ({"label": {"name": "y", "negative": [1]}}, "found only negative; add positive"),
        ({"label": {"above": 3}}, "expected a name among its keys"),
        ({"label": None}, "expected the name of a column, found none"),
        ({"label": {"name": "y", "above": "high"}}, "above: expected a number, found 'high'"),
        ({"label": {"name": "y", "positive": [1], "negative": [1]}}, "found '1' in both lists"),
        ({"label": {"name": "y", "positive": [True]}}, "in quotes, found [True]"),
        ({"label": "x"}, "label: expected a column that no feature uses, found 'x'"),
        ({"dense": [{"name": "x", "transform": "logp1"}]}, "column x: transform: expected one"),
        ({"dense": [{"name": "x", "transforms": "log"}]}, "did you mean transform?"),
        ({"dense": [{"name": "x", "buckets": 3}]}, "buckets: expected with transform quantile"),
        ({"dense": [{"name": "x", "clip": [3, 1]}]}, "clip: expected the lowest value first"),
        ({"dense": [{"name": "x", "transform": "log1p", "clip": [-1, 9]}]}, "so that ln(x + 1.0)"),
        ({"dense": [{"name": "x", "missing": "mode"}]}, "refuse or: expected a number"),
        ({"dense": []}, "dense: expected at least one column, found none"),
        ({"categorical": [{"name": "c", "modulo": 9}]}, "type: text is the CRC-32 of the text"),
        ({"categorical": ["c", "c"]}, "expected features of different names, found 'c'"),
        ({"categoricals": ["c"]}, "found categoricals; did you mean categorical?"),
        ({"delimiter": "::"}, "delimiter: expected one character such as ';' or '|'"),
        ({"format": "xlsx"}, "format: expected one of tsv, csv, parquet, jsonl, found 'xlsx'"),
        ({"dense_type": "float64"}, "dense_type: expected one of float32, found 'float64'"),
        ({"split": {"by": "time", "column": "t"}}, "columns: expected t among them"),
        ({"split": {"by": "time", "column": "y", "test": [1, 2]}}, "the time of its first row"),
        ({"split": {"test": "many"}}, "test: expected a fraction such as 0.1, found 'many'"),
        ({"split": 3}, "split: expected keys such as by and test, found 3"),
        ({"columns": "y"}, "columns: expected a list of names, found 'y'"),
        ({"dense": "x"}, "dense: expected a list of columns, found 'x'"),
        ({"dense": [{"type": "hour"}]}, "found {'type': 'hour'}; add name: COLUMN"),
        ({"threshold": -1}, "threshold: expected an integer from 0"),
        ({"zzz": 1}, "found zzz; remove it"),
        ({"split": {"by": "fraction", "tests": 0.1}}, "found tests; did you mean test?"),
    ],
)  # fmt: skip
def test_a_wrong_schema_of_columns_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_user_schema({**SMALL, **change})
    assert message in str(caught.value)
    assert "; " in str(caught.value), "a remedy"
    assert "\n" not in str(caught.value)


def test_record_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "log.csv").write_text("y,x,c\n1,2,a\n")
    flags = [f"--output={tmp_path}/o", "--rules=generic", f"--schema={tmp_path}/schema.yaml"]
    assert main([str(tmp_path / "log.csv"), *flags]) == 1
    assert "because record files hold integers; add --columns" in capsys.readouterr().err


def test_the_logarithm_is_that_of_the_definition() -> None:
    """Within an ulp of the C library's, which is not the same function in every version."""
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    x = np.exp(generator.uniform(-60, 80, 50_000))
    x = np.concatenate([x, 1 + generator.normal(0, 1e-7, 999)])
    x = np.concatenate([x, [1.0, 2.0, 0.5, np.nextafter(1, 2), np.nextafter(1, 0), 3.4e38]])
    expected = np.log(x)
    assert np.all(np.abs(natural_log(x) - expected) <= np.spacing(np.abs(expected)))


def test_statistics_of_a_column() -> None:
    values = np.array([1.0, np.nan, 3.0, 100.0])
    column = DenseColumn("x", "x", transform=STANDARDISE, clip=(0.0, 10.0), missing=2.0)
    known = learn(column, values)
    assert (known.missing, known.mean) == (2.0, 4.0)
    assert known.deviation == pytest.approx(np.std([1, 2, 3, 10]))
    assert learn(DenseColumn("x", "x", missing=MEAN), values).missing == pytest.approx(104 / 3)
    quantile = DenseColumn("x", "x", transform=QUANTILE, buckets=4)
    assert learn(quantile, np.zeros(9)).edges == [0.0]
    assert [sample_stride(n) for n in (0, 1 << 18, (1 << 18) + 1, 1 << 20)] == [1, 1, 2, 4]


def test_a_guessed_schema_runs_as_it_is(tmp_path: Path) -> None:
    """CSV without a header but with quirks, tabs, JSON lines and Parquet."""
    print(f"seed {SEED}")
    generator = np.random.default_rng(SEED)
    ages, tail = generator.integers(17, 90, 400), np.round(generator.lognormal(3, 2, 400), 1)
    work = generator.choice(["Private", "State-gov", "?"], 400)
    labels = generator.choice(["<=50K", ">50K"], 400, p=[0.8, 0.2])
    frame = pl.DataFrame({"age": ages, "work": work, "gain": tail, "income": labels})
    text = "".join(f"{a}, {w}, {g}, {y}\n" for a, w, g, y in frame.rows())
    for name, data in {
        "bare.csv": text.encode(),
        "named.csv": b"\xef\xbb\xbfage,work,gain,income\r\n" + text.replace("\n", "\r\n").encode(),
        "log.tsv.gz": gzip.compress(frame.write_csv(separator="\t").encode()),
        "log.jsonl": frame.write_ndjson().encode(),
        "log.parquet": b"",
    }.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        log, schema = folder / name, folder / "schema.yaml"
        log.write_bytes(data) if data else frame.write_parquet(log)
        assert guess.main([str(log), f"--output={schema}"]) == 0
        content = yaml.safe_load(schema.read_text())
        assert content["label"]["positive"] == [">50K", ">50K."], name
        assert content["absent"] == ["?"]
        assert [column.get("transform") for column in content["dense"]] == ["standardise", "log1p"]
        flags = ["--rules=generic", f"--schema={schema}", "--columns"]
        assert main([str(log), f"--output={folder / 'out'}", *flags]) == 0, name
        found, _, ids = _columns(folder, "train", 2, 1)
        assert found.tolist() == (labels[:360] == ">50K").astype(int).tolist()
        assert ((ids[:, 0] == 0) == (work[:360] == "?")).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected rows, found an empty file"),
        (b"hello\nworld\n", "expected fields separated by a tab or one of , ; |"),
        (b"a,b\n1,\xe9\n", "line 2: expected UTF-8 text, found byte 0xe9"),
        (b'{"a": 1}\n{"a":\n', "line 2: expected a JSON object"),
        (b"1,2\n3,4\n5,6\n7,8\n", "expected a column of two values or of ratings as the label"),
        (b"y,t\n0,a\n1,b\n", "expected a column of numbers or times as a dense feature"),
    ],
)
def test_what_cannot_be_guessed_is_named(
    text: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_bytes(text)
    assert guess.main([str(tmp_path / "log")]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {tmp_path / 'log'}"), error
    assert message in error


def test_the_schema_in_the_documents_is_valid() -> None:
    root = Path(__file__).resolve().parents[3]
    text = (root / "preprocess" / "schema_any_log.yaml").read_text(encoding="utf-8")
    assert text in (root / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    schema = parse_user_schema(yaml.safe_load(text)).schema
    assert (len(schema.dense), len(schema.categorical)) == (4, 4)
