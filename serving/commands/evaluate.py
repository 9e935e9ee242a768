"""`python3 -m serving evaluate`: the flags of an evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Registers the command."""
    text = (
        "Print AUC, log loss and normalised entropy (NE) of an artifact beside the float32 model's,"
        " and whether 99 % and 99.9 % of its AUC are held. Exit code 1 if 99 % is not."
    )
    parser = commands.add_parser(
        "evaluate", help="Measure what quantisation costs.", description=text
    )
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="the artifact")
    parser.add_argument("data", type=Path, metavar="DATA", help="split folder, such as the test's")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="ARTIFACT",
        help="artifact of the float32 model (default: the figures in the model card)",
    )
    parser.set_defaults(run=_run)


def _run(flags: argparse.Namespace) -> int:
    from dlrm.metrics import MLPERF_SHARES
    from serving.evaluate import evaluate, report

    comparison = evaluate(flags.artifact, flags.data, reference=flags.reference)
    for line in report(comparison):
        print(line)
    return 0 if comparison.held(min(MLPERF_SHARES)) else 1
