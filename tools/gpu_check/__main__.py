"""The command `python3 -m tools.gpu_check`."""

from __future__ import annotations

import os
import sys

from dlrm import cli

if __name__ == "__main__":
    # Read when TensorFlow is imported: its notices would hide the report.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with cli.project_environment():
        from tools.gpu_check.command_line import main

    sys.exit(cli.exit_code(main))
