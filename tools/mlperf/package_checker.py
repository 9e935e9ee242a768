"""MLPerf's own package checker, with an entry that its releases have dropped.

    python3 -m tools.mlperf.package_checker SUBMISSION training RULESET [its options]

Its table of benchmarks whose convergence it compares with reference points still has the points of
`dlrm`, but no longer their number of runs, so that it would end in a KeyError.
"""

from __future__ import annotations

import sys

from dlrm import cli

RUNS = 5  # of a submission of dlrm; as many as its count of result files


def main() -> int:
    """Runs the checker on the arguments; returns 1 if a fault of its own stopped it, else 0."""
    with cli.project_environment():
        from mlperf_logging.package_checker import package_checker
        from mlperf_logging.rcp_checker import rcp_checker
    rcp_checker.submission_runs["training"].setdefault("dlrm", RUNS)
    try:
        package_checker.main()
    except KeyError as error:
        # It looks up what it could not find in the logs, after it said so in a line.
        cli.print_error(f"the checker stopped at the key {error}; its last warning says why")
        return cli.FAILURE
    return 0


if __name__ == "__main__":
    sys.exit(main())
