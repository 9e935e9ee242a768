"""Bags of ids from raw logs, against a computation of one row after the other in plain Python."""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import yaml

from dlrm.data.verify import check_data
from preprocess import guess
from preprocess.__main__ import main
from preprocess.user_schema import parse_user_schema

SEED = 31
ROWS = 3000
MOST = 4
SCHEMA: dict[str, Any] = {
    "format": "csv",
    "header": True,
    "dense_type": "float32",
    "columns": ["label", "number", "genres", "shares", "site", "pages", "part"],
    "absent": ["NA"],
    "label": "label",
    "dense": ["number"],
    "categorical": [
        {"name": "genres", "separator": "|", "max_ids": MOST, "pooling": "mean",
         "weights": "shares", "threshold": 40},
        "site",
        {"name": "pages", "separator": "|", "max_ids": 7, "type": "integer", "modulo": 90},
        {"name": "hashed", "column": "genres", "separator": "|", "max_ids": 9, "type": "text"},
    ],
    "ids": "count",
    "split": {"by": "column", "column": "part", "validation": "v", "test": "t"},
}  # fmt: skip


class Row(NamedTuple):
    """A row of the log before it is written; "" and "NA" are ids without a value."""

    label: int
    number: int
    genres: list[str]
    shares: list[float]
    site: str
    pages: list[str]
    part: str


def _rows(count: int = ROWS) -> list[Row]:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    rows = []
    for number in range(count):
        names = [
            f"né {int(dice.expovariate(0.15))}" for _ in range(dice.choice([0, 1, 1, 2, 3, 6]))
        ]
        names = [name if dice.random() < 0.9 else dice.choice(["", "NA"]) for name in names]
        shares = [round(dice.uniform(-2, 2), 3) for _ in names]
        pages = [str(dice.randrange(10**9)) for _ in range(dice.choice([0, 1, 5, 9]))]
        site = dice.choice(["a", "b", "NA", ""])
        part = dice.choice(["", "", "", "v", "t"])
        rows.append(Row(dice.randrange(2), number, names, shares, site, pages, part))
    return rows


class Expected(NamedTuple):
    """What a table should hold: the ids of each row's bag, with their weights, and its size."""

    bags: list[list[tuple[int, float]]]
    size: int
    shortened: int
    unknown: int


def _expected(
    lists: list[list[tuple[str, float]]],
    most: int,
    value: Callable[[str], int] | None,
    threshold: int,
    by_count: bool = True,
) -> Expected:
    """Works out a table row by row.

    Args:
        lists: The (text, weight) pairs of each row's field.
        most: The most ids of a bag.
        value: Returns the number of a text; None numbers texts as they appear.
        threshold: Values seen fewer times share id 0.
        by_count: Whether ids are in order of count and value.
    """
    good = [[(text, w) for text, w in pairs if text not in ("", "NA")] for pairs in lists]
    kept = [pairs[:most] for pairs in good]
    numbers: dict[str, int] = {}
    values = [
        [(value(t) if value else numbers.setdefault(t, len(numbers)), w) for t, w in pairs]
        for pairs in kept
    ]
    counts = Counter(v for pairs in values for v, _ in pairs)  # in order of first appearance
    chosen = [v for v in counts if counts[v] >= threshold]
    if by_count:
        chosen.sort(key=lambda v: (-counts[v], v))
    ids = {v: 1 + i for i, v in enumerate(chosen)}
    return Expected(
        [[(ids.get(v, 0), w) for v, w in pairs] for pairs in values],
        1 + len(chosen),
        sum(len(pairs) > most for pairs in good),
        sum(count for v, count in counts.items() if v not in ids),
    )


def _tables(rows: list[Row]) -> dict[int, Expected]:
    """The tables with bags of SCHEMA, which come after the one without."""
    genres = [list(zip(row.genres, row.shares)) for row in rows]
    pages = [[(page, 1.0) for page in row.pages] for row in rows]
    return {
        1: _expected(genres, MOST, None, 40),
        2: _expected(pages, 7, lambda text: int(text) % 90, 0),
        3: _expected(genres, 9, lambda text: zlib.crc32(text.encode()), 0),
    }


def _text(rows: list[Row], delimiter: str, separator: str, quote: str = "") -> bytes:
    """Writes rows as text; blanks and quotes around fields change nothing."""
    lines = [delimiter.join(SCHEMA["columns"])]
    for row in rows:
        genres = separator.join(f" {name}" for name in row.genres)
        shares = separator.join(map(repr, row.shares))
        bags = [f"{quote}{text}{quote}" for text in (genres, shares, separator.join(row.pages))]
        fields = [str(row.label), str(row.number), bags[0], bags[1], row.site, bags[2], row.part]
        lines.append(delimiter.join(fields))
    return "\n".join(lines).encode()


def _run(folder: Path, log: bytes | pl.DataFrame, schema: dict[str, Any], *flags: str) -> int:
    folder.mkdir(exist_ok=True)
    path = folder / f"log.{schema['format']}"
    log.write_parquet(path) if isinstance(log, pl.DataFrame) else path.write_bytes(log)
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema), encoding="utf-8")
    arguments = ["--rules=generic", f"--schema={folder / 'schema.yaml'}", "--columns"]
    return main([str(path), f"--output={folder / 'out'}", *arguments, *flags])


def _read_bags(split: Path, table: int, weights: bool) -> list[list[tuple[int, float]]]:
    """Reads a table's files, as docs/data_formats.md describes them, with NumPy alone."""
    ids = np.fromfile(split / f"bag_{table}_ids.bin", "<i4").tolist()
    offsets = np.fromfile(split / f"bag_{table}_offsets.bin", "<i8").tolist()
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    name = split / f"bag_{table}_weights.bin"
    assert name.exists() == weights
    factors = np.fromfile(name, "<f4").tolist() if weights else [1.0] * len(ids)
    pairs = list(zip(ids, factors))
    return [pairs[start:stop] for start, stop in zip(offsets, offsets[1:])]


def _float32(bag: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(number, float(np.float32(weight))) for number, weight in bag]


def _bytes(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "records.json"
    }


def test_every_table_against_plain_python(tmp_path: Path) -> None:
    """Small blocks and parts, so that bags go on in the next one; every split."""
    rows = _rows()
    flags = ("--block_mib=1", "--part_mib=1")
    assert _run(tmp_path, _text(rows, ",", "|"), SCHEMA, *flags) == 0
    tables = _tables(rows)
    description = json.loads((tmp_path / "out" / "records.json").read_text())
    assert description["vocab_sizes"][1:] == [tables[t].size for t in (1, 2, 3)]
    assert description["shortened_bags"] == [tables[t].shortened for t in (1, 2, 3)]
    assert description["unknown_categories"][1:] == [tables[t].unknown for t in (1, 2, 3)]
    assert description["missing_categories"][1] == sum(not bag for bag in tables[1].bags)
    assert tables[1].shortened > 10
    assert tables[1].unknown > 10
    for split, part in (("train", ""), ("val", "v"), ("test", "t")):
        chosen = [i for i, row in enumerate(rows) if row.part == part]
        folder = tmp_path / "out" / split
        for table, expected in tables.items():
            found = _read_bags(folder, table, weights=table == 1)
            wanted = [expected.bags[i] for i in chosen]
            if table == 1:
                wanted = [_float32(bag) for bag in wanted]
            else:
                wanted = [[(number, 1.0) for number, _ in bag] for bag in wanted]
            assert found == wanted, (split, table)
        assert np.fromfile(folder / "dense.bin", "<f4").tolist() == chosen
        assert len(np.fromfile(folder / "category.bin", "<i4")) == len(chosen)
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["bags"] == [
            {"table": 1, "pooling": "mean", "max_ids": MOST, "weights": True},
            {"table": 2, "pooling": "sum", "max_ids": 7, "weights": False},
            {"table": 3, "pooling": "sum", "max_ids": 9, "weights": False},
        ]
    assert check_data(tmp_path / "out", "full").faults == []


def test_shuffled_rows_keep_their_bags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preprocess.engine_polars import buckets, write

    monkeypatch.setattr(buckets, "_BUCKET_BYTES", 20_000)
    monkeypatch.setattr(write, "_SCATTER_ROWS", 500)
    rows = _rows()
    assert _run(tmp_path, _text(rows, ",", "|"), SCHEMA, "--shuffle=9") == 0
    folder = tmp_path / "out" / "train"
    order = np.fromfile(folder / "dense.bin", "<f4").astype(int).tolist()
    chosen = [i for i, row in enumerate(rows) if not row.part]
    assert order != chosen
    assert sorted(order) == chosen
    for table, expected in _tables(rows).items():
        found = _read_bags(folder, table, weights=table == 1)
        wanted = [_float32(expected.bags[i]) for i in order]
        if table != 1:
            wanted = [[(number, 1.0) for number, _ in bag] for bag in wanted]
        assert found == wanted, table


def test_the_same_bytes_however_bags_are_written(tmp_path: Path) -> None:
    """Separators in quotes, in tabs and in JSON texts; JSON lists and Parquet lists."""
    rows = _rows(800)
    as_lists = {**SCHEMA, "header": False, "categorical": [
        {k: v for k, v in entry.items() if k != "separator"} if isinstance(entry, dict) else entry
        for entry in SCHEMA["categorical"]
    ]}  # fmt: skip
    frame = pl.DataFrame([row._asdict() for row in rows])
    texts = [
        json.dumps({
            **row._asdict(),
            "genres": "|".join(row.genres),
            "shares": "|".join(map(repr, row.shares)),
            "pages": "|".join(row.pages),
        })
        for row in rows
    ]  # fmt: skip
    escaped = "\n".join(json.dumps(row._asdict()) for row in rows)
    numbers = frame.with_columns(pl.col("pages").list.eval(pl.element().cast(pl.Int64)))
    commas = [
        {**entry, "separator": ","} if isinstance(entry, dict) else entry
        for entry in SCHEMA["categorical"]
    ]
    ways: dict[str, tuple[bytes | pl.DataFrame, dict[str, Any]]] = {
        "bars": (_text(rows, ",", "|"), SCHEMA),
        "tabs": (_text(rows, "\t", "|"), {**SCHEMA, "format": "tsv"}),
        "quoted": (_text(rows, ",", ",", '"'), {**SCHEMA, "categorical": commas}),
        "texts": ("\n".join(texts).encode(), {**SCHEMA, "format": "jsonl", "header": False}),
        "lists": (escaped.encode(), {**as_lists, "format": "jsonl"}),
        "plain": (frame.write_ndjson().encode(), {**as_lists, "format": "jsonl"}),
        "parquet": (frame, {**as_lists, "format": "parquet"}),
        "numbers": (numbers, {**as_lists, "format": "parquet"}),
    }
    found = {}
    for name, (log, schema) in ways.items():
        assert _run(tmp_path / name, log, schema) == 0, name
        found[name] = _bytes(tmp_path / name)
        assert found[name] == found["bars"], name


def test_later_bags_have_the_ids_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _rows(600)
    schema = {**SCHEMA, "ids": "appearance"}
    assert _run(tmp_path / "first", _text(rows[:400], ",", "|"), schema) == 0
    flag = f"--dictionary={tmp_path / 'first' / 'out'}"
    assert _run(tmp_path / "later", _text(rows[400:], ",", "|"), schema, flag) == 0
    dictionary = pl.read_parquet(tmp_path / "first" / "out" / "dictionary" / "table_1.parquet")
    ids = dict(zip(dictionary["text"], dictionary["id"]))
    assert min(ids.values()) == 1
    later = [row for row in rows[400:] if not row.part]
    wanted = [
        [ids.get(text, 0) for text in row.genres if text not in ("", "NA")][:MOST] for row in later
    ]
    found = _read_bags(tmp_path / "later" / "out" / "train", 1, weights=True)
    assert [[number for number, _ in bag] for bag in found] == wanted
    names = ["site", "genres", "pages", "shares"]
    singles: list[dict[str, Any]] = [{"name": name, "type": "text"} for name in names]
    singles[2]["modulo"] = 90
    without = {**schema, "categorical": singles}
    assert _run(tmp_path / "other", _text(rows[400:], ",", "|"), without, flag) == 1
    error = "expected bags of ids in tables [], found [1, 2, 3]; give the same schema"
    assert error in capsys.readouterr().err


def test_only_bags_and_bad_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without other tables there is no category.bin; an empty test part has its one offset."""
    text = b"1;1;a|b|c\n0;2;\n1;3;a;b\n0;4;c|c|a|b\n"
    schema = {
        "format": "csv", "delimiter": ";", "dense_type": "float32", "columns": ["y", "x", "g"],
        "label": "y", "dense": ["x"], "categorical": [BAG],
        "split": {"by": "fraction", "test": 0},
    }  # fmt: skip
    assert _run(tmp_path, text, schema, "--max_bad_rows=1", "--pack_ids") == 0
    assert "1 bags of g had more than 3 ids; their first 3 are kept" in capsys.readouterr().out
    train = tmp_path / "out" / "train"
    assert not (train / "category.bin").exists()
    found = _read_bags(train, 0, weights=False)
    assert [[n for n, _ in bag] for bag in found] == [[1, 2, 3], [], [3, 3, 1]]
    assert _read_bags(tmp_path / "out" / "test", 0, weights=False) == []
    # b is in the row of four ids, but not among the first three.
    counts = pl.read_parquet(tmp_path / "out" / "dictionary" / "table_0.parquet")
    assert dict(zip(counts["text"], counts["count"])) == {"a": 2, "b": 1, "c": 3}


def test_bags_that_are_all_empty(tmp_path: Path) -> None:
    rows = [Row(i % 2, i, [], [], "a", ["NA"], "v" if i > 9 else "") for i in range(12)]
    assert _run(tmp_path, _text(rows, ",", "|"), SCHEMA) == 0
    for split, samples in (("train", 10), ("val", 2), ("test", 0)):
        for table in (1, 2, 3):
            found = _read_bags(tmp_path / "out" / split, table, weights=table == 1)
            assert found == [[]] * samples
    assert check_data(tmp_path / "out" / "val", "full").faults == []


BAG = {"name": "g", "separator": "|", "max_ids": 3}
WEIGHTED = {**BAG, "weights": "w"}
SMALL: dict[str, Any] = {
    "format": "csv", "header": True, "dense_type": "float32", "columns": ["y", "x", "g", "w"],
    "label": "y", "dense": ["x"], "categorical": [BAG],
}  # fmt: skip
LISTS = {"header": False, "format": "jsonl", "categorical": [{"name": "g", "max_ids": 3}]}
BAD_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("1,2,a|b,1", {"categorical": [WEIGHTED]}, "column w: expected as many weights as column g has"
     " ids (correct the line), found '1'"),
    ("1,2,a,", {"categorical": [WEIGHTED]}, "column w: expected for each id a finite float32 weight"
     " (correct the line), found ''"),
    ("1,2,a,nan", {"categorical": [WEIGHTED]}, "a finite float32 weight (correct the line), found"
     " 'nan'"),
    ("1,2,a|b,1|inf", {"categorical": [WEIGHTED]}, "found '1|inf'"),
    ("1,2,a|b,1|1e39", {"categorical": [WEIGHTED]}, "found '1|1e39'"),
    ("1,2,,1|2", {"categorical": [WEIGHTED]}, "as many weights as column g has ids"),
    ("1,2,1|x,", {"categorical": [{**BAG, "type": "integer"}]}, "column g: expected for each id a"
     " 32-bit integer (type: value takes any text), found '1|x'"),
    ("1,2,1|4294967296,", {"categorical": [{**BAG, "type": "integer"}]}, "found '1|4294967296'"),
    ("1,2,ff|0123456789,", {"categorical": [{**BAG, "type": "hex"}]}, "for each id at most 8"
     " hexadecimal digits (type: value takes any text)"),
    ("1,2,a,b|c,1", {}, "expected 4 comma-separated fields, found 5; correct the line"),
    ('{"y": 1, "x": 2, "g": "a|b"}', LISTS, "column g: expected a list of texts or numbers (give a"
     " separator to split a text), found 'a|b'"),
    ('{"y": 1, "x": 2, "g": [["a"], ["b"]]}', LISTS, "a list of texts or numbers"),
    ('{"y": 1, "x": 2, "g": [{"a": 1}]}', LISTS, "a list of texts or numbers"),
    ('{"y": 1, "x": 2, "g": [true]}', LISTS, "a list of texts or numbers"),
    ('{"y": 1, "x": 2, "g": ["a", "b"]}', {**LISTS, "categorical": [BAG]}, "column g: expected a"
     " text to split, not a list (leave the separator out for lists), found '[\"a\",\"b\"]'"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "change", "message"), BAD_ROWS)
def test_a_bad_bag_is_named(
    line: str,
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    schema = {**SMALL, **change}
    good = b"1,1,a,2\n" if schema["categorical"] == [WEIGHTED] else b"1,1,1,2\n"
    if schema["format"] == "jsonl":
        field = b'"a"' if "separator" in schema["categorical"][0] else b'["a"]'
        good = b'{"y": 1, "x": 1, "g": %s}\n' % field
    text = (b"y,x,g,w\n" if schema["header"] else b"") + good + line.encode() + b"\n" + good
    assert _run(tmp_path, text, schema) == 1
    error = capsys.readouterr().err.strip()
    number = 3 if schema["header"] else 2
    assert error.startswith(f"error: {tmp_path / 'log'}.{schema['format']}, line {number}: "), error
    assert message in error, error
    assert "\n" not in error
    assert _run(tmp_path, text, schema, "--max_bad_rows=1", "--restart") == 0


@pytest.mark.parametrize(
    ("frame", "keys", "message"),
    [
        ({"g": [[["a"]]]}, {}, "column g: expected lists of values, found lists of lists"),
        ({"g": ["a|b"]}, {}, "column g: expected lists, found one value in a field; give"),
        ({"g": [["a"]]}, {"separator": "|"}, "expected one value in a field, found lists; give"),
        ({"other": [["a"]]}, {}, "expected columns g, found none of these names; correct"),
    ],
)  # fmt: skip
def test_a_wrong_parquet_column_is_named(
    frame: dict[str, Any],
    keys: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = pl.DataFrame({"y": [1], "x": [1.5], **frame})
    column = {"name": "g", "max_ids": 3, **keys}
    change = {"format": "parquet", "header": False, "categorical": [column]}
    assert _run(tmp_path, log, {**SMALL, **change}) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {tmp_path / 'log.parquet'}: "), error
    assert message in error, error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_ids": 0}, "column g: max_ids: expected an integer from 1 to 65536, found 0; give"),
        ({"max_ids": True}, "found True"),
        ({"max_ids": None}, "found None"),
        ({"separator": ""}, "separator: expected the text between two ids, found ''; give one in"),
        ({"separator": 1}, "found 1; give one in quotes, such as '|'"),
        ({"separator": "\n"}, "separator: expected the text between two ids, found '\\n'"),
        ({"pooling": "max"}, "pooling: expected one of sum, mean, found 'max'"),
        ({"weights": ""}, "weights: expected the name of a column, found ''; leave it out"),
        ({"weights": "g"}, "weights: expected another column than that of the ids, found 'g'"),
        ({"weights": "v"}, "columns: expected v among them"),
        ({"weights": "y"}, "label: expected a column that no feature uses, found 'y'"),
        ({"type": "hour"}, "type: expected value, text, integer or hex for a bag of ids"),
        ({"modulo": 0, "type": "text"}, "modulo: expected an integer from 1"),
        ({"max_id": 3}, "found max_id; did you mean max_ids?"),
    ],
)  # fmt: skip
def test_a_wrong_key_of_a_bag_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_user_schema({**SMALL, "categorical": [{**BAG, **change}]})
    assert message in str(caught.value)
    assert "; " in str(caught.value), "a remedy"
    assert "\n" not in str(caught.value)


def test_keys_that_do_not_fit_each_other() -> None:
    for change, message in (
        ({"categorical": [{"name": "g", "separator": "|"}]}, "max_ids: expected beside separator"),
        ({"categorical": [{"name": "g", "max_ids": 3}]}, "separator: expected with format csv"),
        (
            {"delimiter": "|", "quoted": False},
            "separator: expected another text than the delimiter between fields, found '|'; choose",
        ),
    ):
        with pytest.raises(ValueError, match="expected") as caught:
            parse_user_schema({**SMALL, **change})
        assert message in str(caught.value)
    assert parse_user_schema({**SMALL, "delimiter": "|"}).schema.columns is not None
    old = {key: value for key, value in SMALL.items() if key != "dense_type"}
    with pytest.raises(ValueError, match="add dense_type: float32"):
        parse_user_schema(old)


def test_guessed_bags_run_as_they_are(tmp_path: Path) -> None:
    """Separated texts, JSON lists and Parquet lists; names and decimal commas are no bags."""
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    names = ["Action", "Comedy", "Drama", "War"]
    genres = [dice.sample(names, dice.randrange(4)) for _ in range(300)]
    frame = pl.DataFrame(
        {
            "label": [dice.randrange(2) for _ in genres],
            "size": [str(dice.randrange(99)) for _ in genres],
            "genres": genres,
            "name": [f"{dice.choice('ABCDEFG')}, {dice.choice('RSTUVW')}" for _ in genres],
            "price": [f"{dice.randrange(9)},{dice.randrange(9)}" for _ in genres],
        }
    )
    joined = frame.with_columns(pl.col("genres").list.join("|"))
    expected = _expected([[(g, 1.0) for g in bag] for bag in genres], 3, None, 0, by_count=False)
    for name, data in {
        "log.csv": joined.write_csv().encode(),
        "log.jsonl": frame.write_ndjson().encode(),
        "log.parquet": b"",
    }.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        log, schema = folder / name, folder / "schema.yaml"
        log.write_bytes(data) if data else frame.write_parquet(log)
        assert guess.main([str(log), f"--output={schema}"]) == 0
        bags = [c for c in yaml.safe_load(schema.read_text())["categorical"] if "max_ids" in c]
        separator = {"separator": "|"} if name == "log.csv" else {}
        assert bags == [{"name": "genres", **separator, "max_ids": 3, "pooling": "mean"}], name
        assert "bags of up to 3 of 4 texts" in schema.read_text()
        flags = ["--rules=generic", f"--schema={schema}", "--columns", f"--output={folder / 'out'}"]
        assert main([str(log), *flags]) == 0, name
        [split] = (folder / "out" / "train").glob("bag_*_ids.bin")
        found = _read_bags(split.parent, int(split.name.split("_")[1]), weights=False)
        assert [[n for n, _ in bag] for bag in found] == [
            [n for n, _ in bag] for bag in expected.bags[: len(found)]
        ], name
