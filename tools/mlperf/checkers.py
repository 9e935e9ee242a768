"""MLPerf's own checkers: of a log, of a submission's tree, and of its file names and sizes.

They are programs that say what they found; two of them end with code 0 whatever it is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

_STRICT = ("--werror",)  # else a second run_stop is but a warning


class Verdict(NamedTuple):
    """What a checker said.

    Attributes:
        passed: Whether it found no error.
        output: All that it printed.
    """

    passed: bool
    output: str


def check_log(log: Path, ruleset: str) -> Verdict:
    """Checks one log."""
    options = ("--usage", "training", "--ruleset", ruleset, *_STRICT)
    return _ask("mlperf_logging.compliance_checker", *options, str(log), good="SUCCESS")


def check_package(tree: Path, ruleset: str) -> Verdict:
    """Checks a submitter's folder: systems, logs, seeds, and how fast they converged."""
    found = "PACKAGE CHECKER FOUND NO ERRORS, SUCCESS !"
    name = "tools.mlperf.package_checker"
    return _ask(name, str(tree), "training", ruleset, *_STRICT, good=found)


def check_files(tree: Path, ruleset: str) -> Verdict:
    """Checks the names and sizes of the files."""
    name = "mlperf_logging.repo_checker"
    return _ask(name, str(tree), "training", ruleset, good="ALL CHECKS PASSED.")


def _ask(module: str, *arguments: str, good: str) -> Verdict:
    """Runs a checker, which passes if it ends with code 0 and says the good words."""
    with tempfile.TemporaryDirectory() as folder:
        log = ("--log_output", f"{folder}/log")
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, *log],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    return Verdict(done.returncode == 0 and good in done.stdout, done.stdout)
