"""The command `python3 -m dlrm_v3.train`, on one rank or, under a launcher, on several.

python3 -m dlrm_v3.train --data_dir=DATA --checkpoint_dir=CHECKPOINTS ...       one rank
python3 -m launch -np 2 -- -m dlrm_v3.train --data_dir=DATA ...                 two

Flags that are not given take the values of a preset, by default that of the data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dlrm import cli
from dlrm_v3.train.settings import parser

# Read when TensorFlow is imported: its notices would hide our lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 75 where starting again resumes the run."""
    return cli.exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    flags = parser().parse_args(arguments)
    cli.allow_many_files()
    # Imports TensorFlow, so that flag errors and --help come at once.
    with cli.project_environment(), cli.stderr_on_failure(), cli.quick_imports():
        import tensorflow as tf

        from dlrm_v3.train.run import run

        tf.config.list_physical_devices()  # CUDA's library announces itself here
    return os.EX_OK if run(flags) else os.EX_TEMPFAIL


if __name__ == "__main__":
    sys.exit(main())
