"""The accuracy log, written by hand: duplicates, both kinds of answers, the AUC and the targets."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dlrm.metrics import exact_auc
from serving.loadgen.accuracy_log import read_accuracy_log, report


def hexadecimal(*numbers: float) -> str:
    return struct.pack(f"<{len(numbers)}f", *numbers).hex().upper()


def write_log(path: Path, entries: list[tuple[int, str]], one_line: bool = False) -> Path:
    """A log as LoadGen writes it, an entry a line."""
    objects = [
        json.dumps({"seq_id": number, "qsl_idx": sample, "data": data})
        for number, (sample, data) in enumerate(entries)
    ]
    path.write_text(
        f"[{', '.join(objects)}]" if one_line else "[\n" + ",\n".join(objects) + "\n]\n"
    )
    return path


# Two positives (0.75, 0.5) and three negatives (0.5, 0.25, 0.875): of the six comparisons the
# positives win (0.75: 2 of 3) and (0.5: 1 and a tie), 3.5 of 6.
PAIRS = {4: [(0.75, 1), (0.5, 0)], 2: [(0.25, 0), (0.5, 1), (0.875, 0)]}
AUC = 3.5 / 6


def answers(with_labels: bool = True) -> list[tuple[int, str]]:
    found = []
    for sample, pairs in PAIRS.items():
        numbers = [number for pair in pairs for number in (pair if with_labels else pair[:1])]
        found.append((sample, hexadecimal(*numbers)))
    return found


@pytest.mark.parametrize("one_line", [False, True])
def test_pairs_of_prediction_and_label_give_the_auc(tmp_path: Path, one_line: bool) -> None:
    scored = read_accuracy_log(write_log(tmp_path / "log.json", answers(), one_line))
    assert scored.predictions.tolist() == [0.75, 0.5, 0.25, 0.5, 0.875]
    assert scored.labels.tolist() == [1, 0, 0, 1, 0]
    assert (scored.samples, scored.duplicates) == (2, 0)
    assert exact_auc(scored.predictions, scored.labels) == pytest.approx(AUC, abs=1e-15)


def test_a_sample_that_occurs_again_is_skipped(tmp_path: Path) -> None:
    entries = [*answers(), (4, hexadecimal(0.125, 0, 0.125, 1))]
    scored = read_accuracy_log(write_log(tmp_path / "log.json", entries))
    assert (scored.samples, scored.duplicates, len(scored.labels)) == (2, 1, 5)
    assert exact_auc(scored.predictions, scored.labels) == pytest.approx(AUC, abs=1e-15)


def test_predictions_alone_get_their_labels_by_sample(tmp_path: Path) -> None:
    labels = {s: np.array([y for _, y in pairs], np.float32) for s, pairs in PAIRS.items()}
    log = write_log(tmp_path / "log.json", answers(with_labels=False))
    scored = read_accuracy_log(log, lambda sample: labels[sample])
    assert exact_auc(scored.predictions, scored.labels) == pytest.approx(AUC, abs=1e-15)


def test_the_auc_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(11)
    labels = (generator.random(20_000) < 0.1).astype(np.float32)
    scores = (labels + generator.normal(0, 2, 20_000)).astype(np.float32).round(2)  # many ties
    assert exact_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (hexadecimal(0.5, 0.25), "pairs of a prediction and a label 0 or 1"),
        (hexadecimal(0.5), "sample 3: expected a multiple of 8 bytes, found 4"),
        ("", "sample 3: expected a multiple of 8 bytes, found 0"),
        (hexadecimal(float("nan"), 1), "sample 3: expected finite predictions"),
        ("0G", "line 2: expected an object with qsl_idx and data"),
    ],
)
def test_a_bad_answer_is_named(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_accuracy_log(write_log(tmp_path / "log.json", [(3, data)]))


def test_predictions_of_another_run_are_refused(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.json", answers(with_labels=False))
    with pytest.raises(ValueError, match="sample 4: expected 7 predictions"):
        read_accuracy_log(log, lambda sample: np.zeros(7, np.float32))


@pytest.mark.parametrize("text", ["", "[\n]\n", "{}", '["x"]', "[\nnothing\n]\n", "[1"])
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"log\.json.*name the mlperf_log_accuracy\.json") as error:
        read_accuracy_log(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, ("held", "held")), (0.9995, ("held", "held")), (0.995, ("held", "NOT held"))]
    + [(0.98, ("NOT held", "NOT held"))],
)
def test_targets_are_shares_of_the_reference(
    tmp_path: Path, share: float, words: tuple[str, str]
) -> None:
    scored = read_accuracy_log(write_log(tmp_path / "log.json", answers()))
    lines, held = report(scored, AUC / share)
    assert lines[-2].split("%")[1].split("(")[0].strip() == words[0]
    assert lines[-1].split("%")[1].split("(")[0].strip() == words[1]
    assert held == (words[0] == "held")
