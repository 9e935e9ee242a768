"""Trains several times, checks each log, and packs and scores them as MLPerf does.

    python3 -m tools.mlperf run OUT --runs 5 -np 2 -- main.py --flagfile=PRESET --data_dir=DATA
    python3 -m tools.mlperf package OUT LOG...

`run` writes the logs into OUT/logs and then does what `package` does: OUT/SUBMITTER becomes the
tree of a submission. Submitter, division, status and system are those of the logs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dlrm import cli
from dlrm.reporting.mlperf_events import read_events
from tools.mlperf.checkers import Verdict, check_files, check_log, check_package
from tools.mlperf.runs import run_all
from tools.mlperf.score import read_result, score
from tools.mlperf.system import describe_system
from tools.mlperf.tree import build_tree, results_folder

RULESETS = ("0.7.0", "1.0.0", "1.1.0", "2.0.0", "2.1.0")  # those with the benchmark dlrm


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0 if all checkers are content, else 1.

    Raises:
        ValueError, OSError: One line for the user.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    options, command = _parser().parse_args(argv[:end]), list(argv[end + 1 :])
    logs: list[Path] = options.logs if options.action == "package" else []
    if options.action == "run":
        if not command:
            raise ValueError("expected -- and main.py with its flags, found none; see --help")
        if options.runs < 1 or options.np < 1:
            raise ValueError(f"expected 1 or more, found --runs {options.runs} -np {options.np}")
        logs = run_all(options.out / "logs", options.runs, options.np, command)
    return package(options.out, logs, options.ruleset, options.nodes, options.notes)


def package(out: Path, logs: Sequence[Path], ruleset: str, nodes: int, notes: str) -> int:
    """Checks logs, builds their tree, checks it and prints the score.

    Args:
        out: Folder for the tree.
        logs: The logs.
        ruleset: MLPerf's version.
        nodes: Number of hosts that trained.
        notes: What the submitter says of the software.

    Returns:
        0 if every checker is content, else 1.

    Raises:
        ValueError: A log is not that of a finished run.
    """
    results = [read_result(log) for log in logs]
    good = True
    for log, result in zip(logs, results):
        title = (
            f"{log}: {result.status}, AUC {result.auc:.6f} at epoch {result.epoch_num:.3f}, "
            f"{result.minutes:.2f} minutes; compliance checker"
        )
        good &= _report(title, check_log(log, ruleset))
    logged = {event["key"]: event["value"] for event in read_events(str(logs[0]))}
    tree = build_tree(out, describe_system(logged, nodes, notes), logs)
    good &= _report(f"{tree}: package checker", check_package(tree, ruleset))
    good &= _report(f"{tree}: repository checker", check_files(tree, ruleset))
    print(
        f"score: {score(results, results_folder(tree)):.3f} minutes, without the fastest and the "
        f"slowest of {len(results)} runs"
    )
    return 0 if good else cli.FAILURE


def _report(title: str, verdict: Verdict) -> bool:
    """Prints a verdict, with what the checker printed if it found an error."""
    print(f"{title}: {'SUCCESS' if verdict.passed else 'FAILED'}", flush=True)
    if not verdict.passed:
        print(verdict.output, flush=True)
    return verdict.passed


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python3 -m tools.mlperf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, parser_class=cli.Parser)
    run = actions.add_parser("run", help="train, then package")
    package = actions.add_parser("package", help="check, pack and score logs")
    for action in (run, package):
        action.add_argument("out", type=Path, help="folder for the logs and the tree")
        action.add_argument(
            "--ruleset", choices=RULESETS, default=RULESETS[-1], help="MLPerf's version"
        )
        action.add_argument("--nodes", type=int, default=1, help="hosts that train (default: 1)")
        action.add_argument("--notes", default="", help="what to say of the software")
    run.add_argument("--runs", type=int, default=5, help="number of runs (default: 5)")
    run.add_argument("-np", type=int, default=1, help="ranks of each run (default: 1)")
    package.add_argument("logs", type=Path, nargs="+", help="the logs, as results in this order")
    return parser
