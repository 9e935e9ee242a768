"""Dictionaries of real results of preprocess: raw values through them give the records' ids."""

from __future__ import annotations

import json
import zlib

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from dlrm.checkpoint.manifest import ModelShape
from preprocess.__main__ import main as preprocess
from serving.dictionary import write_dictionary

NUM_DENSE, TABLES, ROWS = 2, 2, 400
SHAPE = [f"--num_dense={NUM_DENSE}", f"--num_categorical={TABLES}"]
GENERIC = """
format: csv
columns: [label, a, b, site, user]
label: label
dense: [a, {name: b, lowest: -5}]
categorical:
  - {name: site, type: text, threshold: 3, modulo: 50}
  - {name: user, type: integer}
missing: special
dense_log_offset: 6
"""


def hex_log(path):
    """A log in Criteo's format; returns its raw values, -1 where a field is empty."""
    dice = np.random.default_rng(3)
    values = np.where(
        dice.random((ROWS, TABLES)) < 0.1, -1, dice.zipf(1.4, (ROWS, TABLES)) * 2654435761 % 2**32
    )
    dense = dice.integers(-9, 9, (ROWS, NUM_DENSE))
    lines = (
        "\t".join(["1", *map(str, numbers), *("" if v < 0 else f"{v:08x}" for v in fields)])
        for numbers, fields in zip(dense, values)
    )
    path.write_text("\n".join(lines) + "\n")
    return dense, values


def text_log(path):
    """A log of other columns, with texts and large numbers."""
    dice = np.random.default_rng(3)
    texts = [f"site{number}" if number > 1 else "" for number in dice.zipf(1.5, ROWS)]
    users = dice.integers(2**32 - 20, 2**32, ROWS)
    dense = dice.integers(-9, 9, (ROWS, NUM_DENSE))
    lines = (f"1,{a},{b},{text},{user}" for (a, b), text, user in zip(dense, texts, users))
    path.write_text("\n".join(lines) + "\n")
    numbers = [zlib.crc32(text.encode()) if text else -1 for text in texts]
    return dense, np.stack([numbers, users], axis=1)


def result(tmp_path, flags):
    """Preprocesses a log; returns the folder, the raw samples and the records."""
    log, out = tmp_path / "raw.log", tmp_path / "out"
    if flags == ["--rules=generic"]:
        (tmp_path / "schema.yaml").write_text(GENERIC)
        dense, values = text_log(log)
        flags = [*flags, f"--schema={tmp_path / 'schema.yaml'}"]
    else:
        dense, values = hex_log(log)
        flags = [*flags, *SHAPE]
    assert preprocess([str(log), f"--output={out}", *flags]) == 0
    parts = [np.fromfile(out / f"{part}_data.bin", "<i4") for part in ("train", "test")]
    return out, dense, values, np.concatenate(parts).reshape(ROWS, -1)


def model_of(out):
    content = json.loads((out / "records.json").read_text())
    return ModelShape(content["num_dense"], tuple(content["vocab_sizes"]), 4, (4,), (1,))


def ids_of(values, rules, content):
    """The ids of raw values, as the contract says, one value at a time."""
    known = dict(zip(content["values"].tolist(), content["ids"].tolist()))
    ids = np.zeros(values.shape, np.int32)
    for (sample, table), given in np.ndenumerate(values):
        value = int(given)
        if value < 0:
            if not rules["missing_is_value"]:
                continue
            value = 0
        if rules["moduli"][table]:
            value %= rules["moduli"][table]
        ids[sample, table] = known.get(table << 32 | value, 0)
    return ids


@pytest.mark.parametrize(
    "flags",
    [
        ["--rules=dlrm"],
        ["--rules=dlrm", "--frequency_threshold=2"],
        ["--rules=mlperf"],
        ["--rules=mlperf", "--max_table_rows=10"],
        ["--rules=spark", "--frequency_threshold=2"],
        ["--rules=spark", "--frequency_threshold=1", "--max_table_rows=10"],
        ["--rules=generic"],
    ],
    ids=" ".join,
)
def test_raw_values_get_the_ids_of_the_records(tmp_path, flags):
    out, dense, values, records = result(tmp_path, flags)
    (tmp_path / "artifact").mkdir()
    rules, digest = write_dictionary(out, model_of(out), tmp_path / "artifact")
    path = tmp_path / "artifact" / "dictionary.safetensors"
    assert digest.size == path.stat().st_size
    content = load_file(path)
    assert content["values"].dtype == np.int64
    assert content["ids"].dtype == np.int32
    assert (np.diff(content["values"]) > 0).all()
    np.testing.assert_array_equal(ids_of(values, rules, content), records[:, 1 + NUM_DENSE :])
    lowest = np.array(rules["lowest_dense"])
    np.testing.assert_array_equal(np.maximum(dense, lowest), records[:, 1 : 1 + NUM_DENSE])
    written = json.loads((out / "records.json").read_text())
    assert rules["rules"] == written["rules"]
    assert rules["dense_log_offset"] == written["dense_log_offset"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"num_dense": 3}, "dense columns: expected 2 as in the checkpoint, found 3"),
        ({"vocab_sizes": [5]}, "tables: expected 2 as in the checkpoint, found 1"),
        ({"vocab_sizes": [0, 5]}, "vocab_sizes: expected integers from 1 to"),
        ({"vocab_sizes": [1, 1]}, "rows of table 0: expected"),
        ({"dense_log_offset": None}, "dense_log_offset: expected a finite number, found None"),
        ({"rules": "generic"}, "expected the rules 'generic' with missing_is_value, moduli"),
        ({"rules": "generic", "lowest_by_column": []}, "expected a log of numbers, whose raw"),
    ],
)
def test_the_dictionary_of_another_model_is_refused(tmp_path, change, what):
    out, *_ = result(tmp_path, ["--rules=dlrm"])
    model = model_of(out)
    path = out / "records.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=what) as raised:
        write_dictionary(out, model, tmp_path)
    assert "\n" not in str(raised.value)


def test_no_result_and_no_dictionary(tmp_path):
    model = ModelShape(NUM_DENSE, (3, 3), 4, (4,), (1,))
    with pytest.raises(FileNotFoundError, match=r"records.json: no such file; give --dictionary"):
        write_dictionary(tmp_path, model, tmp_path)
    out, *_ = result(tmp_path, ["--rules=dlrm"])
    (out / "dictionary" / "table_1.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"table_1.parquet: expected a dictionary, found"):
        write_dictionary(out, model_of(out), tmp_path)


def test_a_value_that_occurs_twice_is_refused(tmp_path):
    out, *_ = result(tmp_path, ["--rules=dlrm"])
    path = out / "dictionary" / "table_1.parquet"
    frame = pl.read_parquet(path)
    again = pl.concat([frame["value"][:1], frame["value"][:-1]])
    frame.with_columns(again.alias("value")).write_parquet(path)
    with pytest.raises(ValueError, match="table 1: expected each value once, found one twice"):
        write_dictionary(out, model_of(out), tmp_path)


def test_ids_that_are_hashes_are_refused(tmp_path):
    (tmp_path / "log.tsv").write_text("1\t5\tff\n0\t6\t1\n1\t7\t2\n")
    schema = {"columns": ["y", "n", "a"], "label": "y", "dense": ["n"]}
    schema["categorical"] = [{"name": "a", "ids": "hash", "modulo": 9}]
    (tmp_path / "schema.yaml").write_text(json.dumps(schema))
    flags = ["--rules=generic", f"--schema={tmp_path / 'schema.yaml'}", f"--output={tmp_path}"]
    assert preprocess([str(tmp_path / "log.tsv"), *flags, "--columns"]) == 0
    with pytest.raises(ValueError, match=r"ids: hash in tables \[0\]; leave --dictionary"):
        write_dictionary(tmp_path, model_of(tmp_path), tmp_path)
