"""The command `python3 -m tools.mlperf`."""

from __future__ import annotations

import sys

from dlrm import cli

if __name__ == "__main__":
    with cli.project_environment():
        from tools.mlperf.command_line import main

    sys.exit(cli.exit_code(lambda: main(sys.argv[1:]), "interrupted; finished runs are kept"))
