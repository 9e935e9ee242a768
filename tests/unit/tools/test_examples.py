"""The logs of the worked examples: their bytes, their quirks, and the AUC that is known of them."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dlrm.data import open_split
from preprocess import guess
from preprocess.__main__ import main as preprocess
from tests.support.processes import run
from tests.support.spark_session import ENGINES
from tools.examples.__main__ import main
from tools.examples.logs import EXAMPLES

ROWS = 20_000


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_log_is_drawn_from_its_logits(name: str) -> None:
    log = EXAMPLES[name](ROWS, 3)
    again = EXAMPLES[name](ROWS, 3)
    assert log.lines == again.lines
    assert EXAMPLES[name](ROWS, 4).lines != log.lines
    assert len(log.lines) == 1 + ROWS
    chances = 1 / (1 + np.exp(-log.logits))
    # Four standard deviations of a sum of independent labels, over all rows and over thirds.
    order = np.argsort(chances)
    for part in (order, *np.array_split(order, 3)):
        deviation = np.sqrt(np.sum(chances[part] * (1 - chances[part])))
        assert abs(log.labels[part].sum() - chances[part].sum()) < 4 * deviation
    best = roc_auc_score(log.labels, log.logits)
    assert 0.65 < best < 0.95
    assert roc_auc_score(log.labels, log.logits + np.random.default_rng(1).normal(size=ROWS)) < best


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_log_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    log = EXAMPLES[name](ROWS, 1)
    (tmp_path / "log.csv").write_text("\n".join(log.lines) + "\n")
    assert guess.main([str(tmp_path / "log.csv"), f"--output={tmp_path / 'guessed.yaml'}"]) == 0
    guessed = (tmp_path / "guessed.yaml").read_text()
    edited = log.edited(guessed)
    assert guessed.count("name:") - edited.count("name:") == len(log.unwanted)
    (tmp_path / "schema.yaml").write_text(edited)
    for schema, output in (("guessed", "as_guessed"), ("schema", "data")):
        words = [f"--schema={tmp_path / schema}.yaml", f"--output={tmp_path / output}"]
        assert preprocess([str(tmp_path / "log.csv"), "--rules=generic", "--columns", *words]) == 0
    sources = [open_split(tmp_path / "data" / part, False) for part in ("train", "test")]
    labels = np.concatenate([source.read(0, source.num_samples)[2] for source in sources])
    np.testing.assert_array_equal(labels, log.labels)


def test_the_quirks_are_there() -> None:
    logs = {name: log(ROWS, 1).lines for name, log in EXAMPLES.items()}
    assert any(".0," in line and ",," in line for line in logs["counts"][1:])
    assert logs["people"][1].count(", ") == 6
    assert any(", ?, " in line for line in logs["people"])
    fields = next(csv.reader(logs["movies"][1:2]))
    assert len(fields) == 5
    assert "," in fields[1]
    assert any("|" in line for line in logs["movies"])


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["people", str(tmp_path)]) != 0
    assert "already exists" in capsys.readouterr().err
    assert main(["people", str(tmp_path / "new"), "--rows=5"]) != 0
    assert "--rows: expected 10000 or more, found 5" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_one_command(name: str, engine: str, tmp_path: Path) -> None:
    words = ["-m", "tools.examples", name, str(tmp_path / "out"), f"--rows={ROWS}"]
    words.append(f"--engine={engine}")
    ended = run([sys.executable, *words], time_limit=300)
    assert ended.code == 0, ended.output
    found = re.search(r"AUC (0\.\d+); best possible (0\.\d+)", ended.output)
    assert found, ended.output
    auc, best = map(float, found.groups())
    assert 0.5 < auc < best + 0.01
    served = re.search(r"AUC (0\.\d+) of the scores that are served", ended.output)
    assert served, ended.output
    assert float(served[1]) == pytest.approx(auc, abs=2e-4)
