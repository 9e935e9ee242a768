"""`python3 -m serving accuracy`: the AUC in LoadGen's accuracy log, and the targets it holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the command."""
    text = (
        "Read LoadGen's mlperf_log_accuracy.json: the exact AUC, and whether 99 % and 99.9 % of a "
        "reference are held. Exit code 1 if 99 % is not."
    )
    parser = commands.add_parser(
        "accuracy", help="Judge an accuracy log of LoadGen.", description=text
    )
    parser.set_defaults(run=_run)
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help="the log")
    parser.add_argument(
        "--predictions_only",
        action="store_true",
        help="the log has no labels: they are read from --data by --trace",
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="trace of the run: which pairs a sample has"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="split folder of the run")
    add_reference(parser)


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what to compare with."""
    reference = parser.add_mutually_exclusive_group()
    reference.add_argument(
        "--reference_auc", type=_share, metavar="X", help="AUC to compare with, such as 0.8025"
    )
    reference.add_argument(
        "--reference",
        type=Path,
        metavar="ARTIFACT",
        help="artifact to compare with: its AUC over the same pairs is computed",
    )


def _share(text: str) -> float:
    """Reads a number in (0, 1]."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in (0, 1], found {text!r}")
    return number


def _run(flags: argparse.Namespace) -> int:
    from dlrm.data import open_split
    from serving.loadgen.accuracy_log import read_accuracy_log, report
    from serving.loadgen.ground_truth import labels_by_sample, reference_auc
    from serving.loadgen.partition import read_trace

    if flags.predictions_only and not (flags.trace and flags.data):
        raise ValueError("--predictions_only: expected --trace and --data of the run beside it")
    if flags.reference and not (flags.trace and flags.data):
        raise ValueError("--reference: expected --trace and --data of the run beside it")
    labels_of = None
    if flags.trace and flags.data:
        offsets = read_trace(flags.trace)
        source = open_split(flags.data, per_category=False)
        if flags.predictions_only:
            labels_of = labels_by_sample(source, offsets)
    scored = read_accuracy_log(flags.log, labels_of)
    if flags.trace and flags.data:
        check_complete(flags.log, scored.samples, len(offsets) - 1)
    reference = flags.reference_auc
    if flags.reference:
        reference = reference_auc(flags.reference, flags.data, int(offsets[0]), int(offsets[-1]))
    lines, held = report(scored, reference)
    print("\n".join(lines))
    return 0 if held else 1


def check_complete(log: Path, found: int, expected: int) -> None:
    """Checks that a log holds every sample.

    Raises:
        ValueError: It does not.
    """
    if found != expected:
        raise ValueError(
            f"{log}: expected {expected:,} samples, found {found:,}; name the trace of the same "
            "run, and take accuracy_sample_count_override out of its conf files"
        )
