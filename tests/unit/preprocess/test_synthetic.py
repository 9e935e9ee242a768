"""The synthetic logs: what is claimed of them, against independent computations."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from preprocess.click_model import (
    BLOCK_ROWS,
    ClickModel,
    ClickModelOptions,
    power_law_probabilities,
)
from preprocess.score_histogram import ScoreHistogram
from preprocess.synthetic import DEFAULT_VOCAB_SIZES, category_hash, generate, main

SEED = 5
OPTIONS = ClickModelOptions(DEFAULT_VOCAB_SIZES)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 rows: one block and a part of the next."""
    print(f"seed {SEED}")
    path = tmp_path_factory.mktemp("synthetic") / "log.tsv"
    generate(path, 100_000, SEED, OPTIONS)
    return path


@pytest.fixture(scope="module")
def rows(log: Path) -> np.ndarray:
    """The fields of that log, bytes [rows, columns]."""
    fields = log.read_bytes().replace(b"\n", b"\t").split(b"\t")[:-1]
    return np.array(fields).reshape(100_000, 1 + 13 + 26)


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and logits of the same 100,000 rows, from the model itself."""
    model = ClickModel(OPTIONS, SEED)
    blocks = [model.block(0), model.block(1)]
    return tuple(
        np.concatenate([getattr(block, name) for block in blocks])[:100_000]
        for name in ("labels", "logits", "logits_without_pairs")
    )


def test_format_is_the_raw_one(rows: np.ndarray, log: Path) -> None:
    assert log.read_bytes().count(b"\n") == 100_000
    assert set(np.unique(rows[:, 0])) == {b"0", b"1"}
    dense = np.unique(rows[:, 1:14])
    numbers = dense[dense != b""].astype(np.int64)
    assert numbers.min() == -1
    np.testing.assert_array_equal(numbers.astype("S"), dense[dense != b""])
    hashes = np.unique(rows[:, 14:])
    assert all(len(field) == 8 and int(field, 16) >= 0 for field in hashes if field)


def test_dense_values_are_skewed(rows: np.ndarray) -> None:
    for column in range(1, 14):
        fields = rows[:, column]
        values = fields[fields != b""].astype(np.int64)
        assert values.mean() > 1.1 * np.median(values)


def test_ids_follow_a_power_law(rows: np.ndarray) -> None:
    """Shares of the ten hottest ids of the largest table, against the stated law."""
    table = int(np.argmax(DEFAULT_VOCAB_SIZES))
    fields = rows[:, 14 + table]
    counts = Counter(fields[fields != b""].tolist())
    seen = sum(counts.values())
    size, exponent = DEFAULT_VOCAB_SIZES[table], OPTIONS.zipf
    ranks = np.arange(1, size + 1)
    primitive = lambda x: x ** (1 - exponent)  # noqa: E731
    law = (primitive(ranks) - primitive(ranks + 1)) / (1 - primitive(size + 1.0))
    for rank in range(10):
        name = b"%08x" % category_hash(table, np.array([rank]))[0]
        assert counts[name] / seen == pytest.approx(law[rank], abs=4 * (law[rank] / seen) ** 0.5)


def test_power_law_of_exponent_one() -> None:
    expected = np.log(np.arange(2, 12) / np.arange(1, 11)) / np.log(11)
    np.testing.assert_allclose(power_law_probabilities(10, 1.0), expected, rtol=1e-12)


def test_missing_shares(rows: np.ndarray) -> None:
    for start, columns in ((1, 13), (14, 26)):
        shares = np.mean(rows[:, start : start + columns] == b"", axis=0)
        expected = OPTIONS.missing * (np.arange(columns) % 3)
        np.testing.assert_allclose(shares, expected, atol=0.005)


def test_hashes_do_not_collide() -> None:
    for table in range(26):
        assert len(np.unique(category_hash(table, np.arange(50_000)))) == 50_000


def test_stated_figures_against_sklearn(
    log: Path, rows: np.ndarray, truth: tuple[np.ndarray, ...]
) -> None:
    labels, logits, without = truth
    stated = json.loads(log.with_suffix(".json").read_text())
    np.testing.assert_array_equal(rows[:, 0] == b"1", labels)
    assert stated["rows"] == 100_000
    assert stated["positives"] == labels.sum()
    assert stated["best_auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-4)
    assert stated["auc_without_pairs"] == pytest.approx(roc_auc_score(labels, without), abs=1e-4)
    last = slice(90_000, None)
    assert stated["test_rows"] == 10_000
    assert stated["best_auc_test"] == pytest.approx(
        roc_auc_score(labels[last], logits[last]), abs=1e-4
    )
    probabilities = 1 / (1 + np.exp(-logits))
    assert stated["best_log_loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-9)


def test_labels_are_drawn_from_the_stated_probabilities(truth: tuple[np.ndarray, ...]) -> None:
    """In every tenth of the rows by logit the positives are as many as the model says."""
    labels, logits, _ = truth
    probabilities = 1 / (1 + np.exp(-logits))
    for part in np.array_split(np.argsort(logits), 10):
        expected = probabilities[part].mean()
        error = np.sqrt((probabilities[part] * (1 - probabilities[part])).sum()) / len(part)
        assert labels[part].mean() == pytest.approx(expected, abs=4 * error)


def test_label_rate_and_difficulty(log: Path) -> None:
    stated = json.loads(log.with_suffix(".json").read_text())
    assert stated["positives"] / stated["rows"] == pytest.approx(OPTIONS.ctr, abs=0.01)
    assert 0.79 < stated["best_auc"] < 0.84


def test_pair_effects_matter_and_hide_from_single_ids(log: Path) -> None:
    stated = json.loads(log.with_suffix(".json").read_text())
    assert stated["auc_without_pairs"] < stated["best_auc"] - 0.02
    model = ClickModel(OPTIONS, SEED)
    block = model.block(0)
    effect = block.logits - block.logits_without_pairs
    assert effect.std() == pytest.approx(OPTIONS.pair_strength, rel=0.2)
    for table in (table for pair in model.pairs for table in pair):
        ids = block.ids[table]
        seen = np.bincount(ids)
        means = np.bincount(ids, effect) / np.maximum(seen, 1)
        # Sampling alone leaves about one part in rows of the variance for each id.
        between = np.sum(seen * means**2) / np.sum(effect**2)
        assert between < 5 * np.count_nonzero(seen) / BLOCK_ROWS


def test_no_pairs_no_difference(tmp_path: Path) -> None:
    options = ClickModelOptions((20, 30), num_dense=2, pairs=0)
    stated = generate(tmp_path / "log.tsv", 5000, SEED, options)
    assert stated["best_auc"] == stated["auc_without_pairs"]


def test_same_seed_same_bytes_and_longer_logs_extend_shorter(log: Path, tmp_path: Path) -> None:
    rows = BLOCK_ROWS + 1000
    generate(tmp_path / "again.tsv", rows, SEED, OPTIONS)
    again = (tmp_path / "again.tsv").read_bytes()
    assert log.read_bytes().startswith(again)
    lines = again.split(b"\n")
    assert lines[:1000] != lines[BLOCK_ROWS : BLOCK_ROWS + 1000]
    generate(tmp_path / "other.tsv", 1000, SEED + 1, OPTIONS)
    assert not log.read_bytes().startswith((tmp_path / "other.tsv").read_bytes())


def test_files_and_gzip_hold_the_same_rows(tmp_path: Path) -> None:
    options = ClickModelOptions((20, 30), num_dense=2)
    rows = BLOCK_ROWS + 5
    generate(tmp_path / "one.tsv", rows, SEED, options)
    generate(tmp_path / "many.tsv.gz", rows, SEED, options, files=3)
    parts = [gzip.decompress((tmp_path / f"many.{k}.tsv.gz").read_bytes()) for k in range(3)]
    assert b"".join(parts) == (tmp_path / "one.tsv").read_bytes()
    assert [part.count(b"\n") for part in parts] == [rows // 3, rows // 3, rows // 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "many.0.tsv.gz", "many.1.tsv.gz", "many.2.tsv.gz", "many.json", "one.json", "one.tsv",
    ]  # fmt: skip


def test_a_file_may_end_where_a_block_does(tmp_path: Path) -> None:
    generate(tmp_path / "log.tsv", 2 * BLOCK_ROWS, SEED, ClickModelOptions((3,), 1), files=2)
    for index in range(2):
        assert (tmp_path / f"log.{index}.tsv").read_bytes().count(b"\n") == BLOCK_ROWS


def test_histogram_auc_on_ties_skew_and_one_class() -> None:
    rng = np.random.default_rng(SEED)
    logits = np.round(rng.normal(-3, 1, 20_000), 1)
    labels = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    histogram = ScoreHistogram()
    histogram.add(logits[:7000], labels[:7000])
    histogram.add(logits[7000:], labels[7000:])
    assert histogram.auc() == pytest.approx(roc_auc_score(labels, logits), abs=1e-9)
    single = ScoreHistogram()
    single.add(logits, np.ones(20_000, bool))
    assert single.auc() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["log.csv", "--rows", "10"], "expected a name ending in .tsv or .tsv.gz"),
        (["log.tsv", "--rows", "0"], "expected 1 <= files <= rows"),
        (["log.tsv", "--rows", "10", "--ctr", "1.5"], "ctr: expected between 0 and 1, found 1.5"),
        (["log.tsv", "--rows", "10", "--vocab_sizes", "[3, 0]"], "sizes of at least 1"),
        (["log.tsv", "--rows", "10", "--vocab_sizes", '{"a": 1}'], "expected a JSON list"),
    ],
)
def test_bad_options_get_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "log.tsv"), "--rows", "200", "--seed", "3", "--num_dense", "2"]
    assert main([*arguments, "--vocab_sizes", "[20, 30]", "--zipf", "1"]) == 0
    assert "best_auc" in capsys.readouterr().out
    assert {line.count("\t") for line in (tmp_path / "log.tsv").read_text().splitlines()} == {4}
