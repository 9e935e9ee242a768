"""`python3 -m dlrm_v3.accuracy --path FILE`: judges the answers in LoadGen's accuracy log.

It must not know how a run is made, but for the layout of an answer: float32
[timestamp, request, predictions (n), labels (n), weights (n), n], where timestamps count from the
first one of inference, and requests within their timestamp.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from dlrm_v3.quality import RankingQuality, ranking_quality
    from serving.loadgen.accuracy_log import entries

SHARE = 0.999
"""The share of the reference's quality that MLPerf asks for."""

_FIGURES = {
    "NE": "normalised_entropy",
    "accuracy": "accuracy",
    "AUC": "auc",
    "GAUC": "gauc",
}  # by the name on the screen; the field of RankingQuality
_HEAD = 2  # values before the predictions
_EXAMPLE = "NE=0.86687,accuracy=0.69651,AUC=0.78663"
_REMEDY = "name the mlperf_log_accuracy.json of a run with --compute-eval"


class Judged(NamedTuple):
    """The answers of an accuracy log, each request once.

    Attributes:
        quality: The figures over all candidates.
        duplicates: Number of answers that were skipped, as their request was there before.
    """

    quality: RankingQuality
    duplicates: int


def answer(
    timestamp: int, request: int, predictions: NDArray[np.float32], labels: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Makes the answer to a request as the log holds it, float32 [3 + 3 n]; all weights are 1."""
    return np.concatenate(
        [
            np.array([timestamp, request], np.float32),
            predictions,
            labels,
            np.ones_like(labels),
            np.array([len(labels)], np.float32),
        ]
    )


def read_log(path: Path) -> Judged:
    """Reads an accuracy log and computes its figures.

    Raises:
        OSError: The log cannot be read.
        ValueError: It is not an accuracy log of DLRMv3.
    """
    seen: set[tuple[float, float]] = set()
    predictions: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.float32]] = []
    duplicates = 0
    for sample, data in entries(path, _REMEDY):
        try:
            request, its_predictions, its_labels = _split(data)
        except ValueError as error:
            raise ValueError(f"{path}: qsl_idx {sample}: {error}; {_REMEDY}") from None
        if request in seen:
            duplicates += 1
            continue
        seen.add(request)
        predictions.append(its_predictions)
        labels.append(its_labels)
    if not seen:
        raise ValueError(f"{path}: expected answers, found none; {_REMEDY}")
    sizes = np.array([len(part) for part in labels])
    if not sizes.sum():
        raise ValueError(f"{path}: expected weights 1, found 0 alone; {_REMEDY}")
    quality = ranking_quality(np.concatenate(predictions), np.concatenate(labels), sizes)
    return Judged(quality, duplicates)


def _split(data: bytes) -> tuple[tuple[float, float], NDArray[np.float32], NDArray[np.float32]]:
    """The request, predictions and labels of an answer, without candidates of weight 0."""
    size = np.dtype("<f4").itemsize
    if len(data) % size:
        raise ValueError(f"expected a multiple of {size} bytes, found {len(data)}")
    values = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    count = float(values[-1]) if len(values) else 0.0
    if not count.is_integer() or count < 1 or len(values) != _HEAD + 3 * count + 1:
        raise ValueError(
            f"expected 3 + 3 n values that end with n candidates, found {len(values)} values that "
            f"end with {count:g}"
        )
    predictions, labels, weights = values[_HEAD:-1].reshape(3, int(count))
    if not np.isin(labels, (0, 1)).all() or not np.isin(weights, (0, 1)).all():
        raise ValueError("expected labels and weights 0 or 1, found others")
    if not ((predictions >= 0) & (predictions <= 1)).all():
        raise ValueError("expected probabilities as predictions, found others")
    kept = weights == 1
    return (float(values[0]), float(values[1])), predictions[kept], labels[kept]


def read_reference(text: str) -> dict[str, float]:
    """Reads what to compare with: the path of another log, or figures such as `NE=0.87,AUC=78.7%`.

    Returns:
        Figures by their name on the screen.

    Raises:
        OSError, ValueError: It is neither.
    """
    if "=" not in text or Path(text).is_file():
        quality = read_log(Path(text)).quality
        return {name: float(getattr(quality, field)) for name, field in _FIGURES.items()}
    found = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        names = [known for known in _FIGURES if known.lower() == name.lower()]
        try:
            number = float(value.rstrip("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            number = math.nan
        if not names or not 0 < number < math.inf:
            raise ValueError(
                f"--reference: expected a log, or some of {', '.join(_FIGURES)} like {_EXAMPLE}, "
                f"found {part!r}"
            )
        found[names[0]] = number
    return found


def report(judged: Judged, reference: dict[str, float]) -> tuple[list[str], bool]:
    """Compares the figures of a run with those of a reference.

    Returns:
        Lines for people, and whether each figure is within 99.9 % of the reference's: NE at most
        so much greater, the others at most so much smaller.
    """
    quality = judged.quality
    lines = [
        f"requests   {quality.requests:,} ({judged.duplicates:,} duplicates skipped), "
        f"{quality.candidates:,} candidates"
    ]
    all_held = True
    for name, field in _FIGURES.items():
        value = float(getattr(quality, field))
        line = f"{name:<10} {100 * value:.4f} %"
        if name in reference:
            least = name != "NE"
            bound = reference[name] * SHARE if least else reference[name] / SHARE
            held = value >= bound if least else value <= bound
            all_held &= held
            line += (
                f"   reference {100 * reference[name]:.4f} %: {'held' if held else 'NOT held'} "
                f"(needs at {'least' if least else 'most'} {100 * bound:.4f} %)"
            )
        lines.append(line)
    return lines, all_held


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return cli.exit_code(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python3 -m dlrm_v3.accuracy",
        description=(
            "Read LoadGen's mlperf_log_accuracy.json and print normalised entropy (NE), accuracy, "
            "AUC and GAUC. Exit code 1 if one is not within 99.9 % of the reference."
        ),
    )
    parser.add_argument(
        "--path", type=Path, required=True, metavar="FILE", help="mlperf_log_accuracy.json"
    )
    parser.add_argument(
        "--reference",
        metavar="FILE|FIGURES",
        help=f"accuracy log of a reference run, or its figures, such as {_EXAMPLE}",
    )
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    flags = _parser().parse_args(arguments)
    reference = read_reference(flags.reference) if flags.reference is not None else {}
    lines, held = report(read_log(flags.path), reference)
    print("\n".join(lines))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
