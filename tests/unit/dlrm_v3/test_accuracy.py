"""Accuracy logs of DLRMv3, written by hand: figures, references, and files that are broken."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from dlrm_v3.accuracy import answer, main, read_log, read_reference

pytestmark = pytest.mark.one_profile

# Timestamp, request, predictions and labels; the third request has one label alone.
REQUESTS = [
    (0, 4, [0.75, 0.5, 0.25], [1, 0, 1]),
    (0, 2, [0.125, 0.5, 0.875], [0, 1, 1]),
    (1, 2, [0.25, 0.375, 0.625], [0, 0, 0]),
]


def packed(*numbers: float) -> str:
    return struct.pack(f"<{len(numbers)}f", *numbers).hex().upper()


def write(path: Path, data: list[str], one_line: bool = False) -> Path:
    """A log as LoadGen writes it; its own samples have nothing to do with the requests."""
    entries = [json.dumps({"seq_id": n, "qsl_idx": 7, "data": hex}) for n, hex in enumerate(data)]
    joined = f"[{', '.join(entries)}]" if one_line else "[\n" + ",\n".join(entries) + "\n]\n"
    path.write_text(joined)
    return path


def answers() -> list[str]:
    return [packed(t, r, *p, *y, *[1] * len(p), len(p)) for t, r, p, y in REQUESTS]


@pytest.mark.parametrize("one_line", [False, True])
def test_the_figures_of_a_log(tmp_path: Path, one_line: bool) -> None:
    judged = read_log(write(tmp_path / "log.json", answers(), one_line))
    predictions = [p for _, _, values, _ in REQUESTS for p in values]
    labels = [y for *_, values in REQUESTS for y in values]
    rate = np.mean(labels)
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    quality = judged.quality
    assert quality.normalised_entropy == pytest.approx(log_loss(labels, predictions) / entropy)
    assert quality.accuracy == pytest.approx(6 / 9)  # 0.5 is on the side of 1
    assert quality.auc == pytest.approx(roc_auc_score(labels, predictions))
    # The first request ranks one of its two positives above its negative, the second both.
    assert quality.gauc == pytest.approx((0.5 + 1) / 2)
    assert (quality.requests, quality.candidates, judged.duplicates) == (3, 9, 0)


def test_a_request_that_occurs_again_is_skipped(tmp_path: Path) -> None:
    log = write(tmp_path / "log.json", [*answers(), packed(0, 2, 0.5, 0, 1, 1)])
    judged = read_log(log)
    assert (judged.quality.requests, judged.duplicates) == (3, 1)


def test_candidates_without_weight_do_not_count(tmp_path: Path) -> None:
    log = write(tmp_path / "log.json", [packed(0, 0, 0.25, 0.75, 0.5, 0, 1, 1, 1, 1, 0, 3)])
    quality = read_log(log).quality
    assert (quality.candidates, quality.accuracy) == (2, 1)


def test_the_benchmark_writes_what_is_read(tmp_path: Path) -> None:
    data = []
    for timestamp, request, predictions, labels in REQUESTS:
        values = np.array(predictions, np.float32), np.array(labels, np.float32)
        data.append(answer(timestamp, request, *values).tobytes().hex())
    assert data == [text.lower() for text in answers()]


def test_a_reference_is_a_log_or_figures(tmp_path: Path) -> None:
    log = write(tmp_path / "log.json", answers())
    assert read_reference(str(log))["GAUC"] == pytest.approx(0.75)
    assert read_reference("NE=86.687%, auc=0.5") == {"NE": pytest.approx(0.86687), "AUC": 0.5}


@pytest.mark.parametrize(
    ("factor", "name", "code"),
    [(1, "NE", 0), (0.99905, "NE", 0), (0.9989, "NE", 1)]  # of a reference that was lower
    + [(1.00095, "AUC", 0), (1.0011, "AUC", 1), (0.5, "AUC", 0), (1.0011, "accuracy", 1)],
)
def test_each_figure_must_be_within_a_thousandth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, name: str, code: int
) -> None:
    log = write(tmp_path / "log.json", answers())
    own = read_reference(str(log))
    reference = f"--reference={name}={own[name] * factor!r}"
    assert main([f"--path={log}", reference]) == code
    output = capsys.readouterr().out
    assert output.count("held") == 1
    assert ("NOT held" in output) == (code == 1)


def test_without_a_reference_the_figures_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--path={write(tmp_path / 'log.json', answers())}"]) == 0
    output = capsys.readouterr().out
    assert "requests   3 (0 duplicates skipped), 9 candidates" in output
    assert "accuracy   66.6667 %\n" in output
    assert "GAUC       75.0000 %\n" in output


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packed(0, 1, 0.5, 1, 1, 2), "qsl_idx 7: expected 3 \\+ 3 n values"),
        (packed(0, 1, 0.5, 1, 1, 0.5), "expected 3 \\+ 3 n values"),
        (packed(0, 1, 0), "expected 3 \\+ 3 n values"),
        (packed(0, 1, 0.5, 1, 1, float("nan")), "expected 3 \\+ 3 n values"),
        ("", "expected 3 \\+ 3 n values"),
        ("000000", "expected a multiple of 4 bytes, found 3"),
        (packed(0, 1, 0.5, 2, 1, 1), "expected labels and weights 0 or 1"),
        (packed(0, 1, 1.5, 1, 1, 1), "expected probabilities"),
        (packed(0, 1, float("nan"), 1, 1, 1), "expected probabilities"),
        (packed(0, 1, 0.5, 1, 0, 1), "expected weights 1"),
        ("0G", "line 2: expected an object"),
    ],
)
def test_a_broken_log_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, message: str
) -> None:
    log = write(tmp_path / "log.json", [data])
    with pytest.raises(ValueError, match=f"{message}.*--compute-eval"):
        read_log(log)
    assert main([f"--path={log}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [("NE=much", "expected a log, or some of NE"), ("loss=0.5", "found 'loss=0.5'")]
    + [("NE=0", "found 'NE=0'"), ("NE=0.9,", "found ''"), ("nowhere.json", "nowhere.json")],
)
def test_a_bad_reference_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reference: str, message: str
) -> None:
    log = write(tmp_path / "log.json", answers())
    assert main([f"--path={log}", f"--reference={reference}"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
