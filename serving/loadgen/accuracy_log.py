"""LoadGen's accuracy log: the predictions in it, their AUC, and whether MLPerf's targets are held.

The log is a JSON list of objects with `qsl_idx`, the sample, and `data`, the bytes of its answer in
hexadecimal. It must not know scorers or LoadGen itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from dlrm.data.batch import FloatArray
from dlrm.metrics import MLPERF_SHARES, exact_auc

_REMEDY = "name the mlperf_log_accuracy.json of an AccuracyOnly run"


class Scored(NamedTuple):
    """The predictions of an accuracy log, each sample once.

    Attributes:
        predictions: Probabilities, float32 [pairs].
        labels: Labels 0 or 1, float32 [pairs].
        samples: Number of different samples.
        duplicates: Number of entries that were skipped, as their sample was there before.
    """

    predictions: FloatArray
    labels: FloatArray
    samples: int
    duplicates: int


def read_accuracy_log(path: Path, labels_of: Callable[[int], FloatArray] | None = None) -> Scored:
    """Reads an accuracy log.

    Args:
        path: The log.
        labels_of: Returns the labels of a sample, float32 [pairs], where the log holds predictions
            alone; None where it holds pairs (prediction, label).

    Raises:
        OSError: The log cannot be read.
        ValueError: It is not an accuracy log, or its answers are not what was said.
    """
    seen: set[int] = set()
    predictions: list[FloatArray] = []
    labels: list[FloatArray] = []
    duplicates = 0
    for sample, data in entries(path, _REMEDY):
        if sample in seen:
            duplicates += 1
            continue
        seen.add(sample)
        values, its_labels = _split(path, sample, data, labels_of)
        predictions.append(values)
        labels.append(its_labels)
    if not seen:
        raise ValueError(f"{path}: expected answers, found none; {_REMEDY}")
    return Scored(np.concatenate(predictions), np.concatenate(labels), len(seen), duplicates)


def _split(
    path: Path, sample: int, data: bytes, labels_of: Callable[[int], FloatArray] | None
) -> tuple[FloatArray, FloatArray]:
    """The predictions and labels of one entry."""
    width = 8 if labels_of is None else 4
    if not data or len(data) % width:
        raise ValueError(
            f"{path}: sample {sample}: expected a multiple of {width} bytes, found {len(data)}"
        )
    values = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if labels_of is None:
        values, labels = values[0::2], values[1::2]
        if not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"{path}: sample {sample}: expected pairs of a prediction and a label 0 or 1, "
                "found other labels; if these are predictions alone, name the --trace and --data "
                "of the run"
            )
    else:
        labels = labels_of(sample)
        if len(labels) != len(values):
            raise ValueError(
                f"{path}: sample {sample}: expected {len(labels)} predictions, as the trace says, "
                f"found {len(values)}; name the trace and the data of the same run"
            )
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: sample {sample}: expected finite predictions, found others")
    return values, labels


def entries(path: Path, remedy: str) -> Iterator[tuple[int, bytes]]:
    """Reads entry by entry where a line is one, as LoadGen writes them: the whole may be large.

    Args:
        path: The log.
        remedy: What to do if it is not one, for the error message.

    Yields:
        The sample that LoadGen named, and the bytes of its answer.

    Raises:
        OSError: The log cannot be read.
        ValueError: It is not an accuracy log.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        if file.readline().strip() == "[":
            for number, line in enumerate(file, 2):
                text = line.strip().rstrip(",")
                if text not in ("", "]"):
                    yield _entry(path, f"line {number}", text, remedy)
            return
        file.seek(0)
        text = file.read()
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a JSON list, found another value; {remedy}")
    for number, entry in enumerate(content):
        yield _entry(path, f"entry {number}", json.dumps(entry), remedy)


def _entry(path: Path, where: str, text: str, remedy: str) -> tuple[int, bytes]:
    """The sample and the answer of one entry."""
    try:
        entry: Any = json.loads(text)
        return int(entry["qsl_idx"]), bytes.fromhex(entry["data"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path}: {where}: expected an object with qsl_idx and data, found {text[:40]!r}; "
            f"{remedy}"
        ) from None


def report(scored: Scored, reference_auc: float | None) -> tuple[list[str], bool]:
    """Judges predictions.

    Args:
        scored: The predictions.
        reference_auc: The AUC of the float32 model; None if there is nothing to compare with.

    Returns:
        Lines for people, and whether the lower target is held or there is none.
    """
    auc = exact_auc(scored.predictions, scored.labels)
    correct = float(np.mean(np.rint(scored.predictions) == scored.labels))
    lines = [
        f"samples     {scored.samples:,} ({scored.duplicates:,} duplicates skipped)",
        f"pairs       {len(scored.labels):,}, mean label {float(scored.labels.mean()):.4f}",
        f"AUC         {100 * auc:.4f} %",
        f"accuracy    {100 * correct:.3f} %",
    ]
    if reference_auc is None:
        return lines, True
    lines.append(
        f"reference   {100 * reference_auc:.4f} % AUC; this is {auc / reference_auc:.4%} of it"
    )
    held = [auc >= share * reference_auc for share in MLPERF_SHARES]
    for share, is_held in zip(MLPERF_SHARES, held):
        word = "held" if is_held else "NOT held"
        lines.append(
            f"{f'{100 * share:g} %':<11} {word} (needs {100 * share * reference_auc:.4f} %)"
        )
    return lines, held[0]
