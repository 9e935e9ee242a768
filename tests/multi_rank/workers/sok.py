"""SOK's backends on a CPU: python3 sok.py KERNELS FOLDER [CHECK ...].

KERNELS is the library of emulated kernels. Runs the checks of tools.gpu_check that a GPU host would
run; rank 0 writes what came of them to FOLDER/found.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sparse_operation_kit
import tensorflow as tf

from dlrm.config import Config
from dlrm.embedding import sok_storage as sok
from dlrm.train.build import join
from tools.gpu_check.checks import run_check
from tools.gpu_check.setup import CheckSetup

BATCH = 96


def main(kernels: str, folder: str, checks: list[str]) -> None:
    """Runs the checks."""
    tf.load_library(kernels)
    sok.load = lambda: sparse_operation_kit
    collective = join(Config.of(use_synthetic_dataset=True))
    setup = CheckSetup(collective, BATCH)
    setup.require_gpu = lambda: None  # type: ignore[method-assign]
    found = [run_check(name, setup) for name in checks]
    texts = collective.gather_text(json.dumps(found, default=str))
    if collective.rank == 0:
        Path(folder, "found.json").write_text(json.dumps([json.loads(text) for text in texts]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
