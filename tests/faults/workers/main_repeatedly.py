"""Runs main.py's main several times in one process: main_repeatedly.py CASES.json FOLDER.

CASES.json is a list of argument lists. FOLDER gets a file RANK.json from each rank: exit code and
all output of each case. One start of the launcher for many runs that end in good order.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
from pathlib import Path

import main
from dlrm.distributed.connect import connect
from tests.multi_rank.workers.failures import parse


def outcome(arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of one run."""
    parse(arguments)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main.main(["main.py"])
    gc.collect()  # closes the files that a failed run's traceback holds, a lock among them
    return code, output.getvalue()


if __name__ == "__main__":
    main.define_flags()
    found = [outcome(case) for case in json.loads(Path(sys.argv[1]).read_text())]
    (Path(sys.argv[2]) / f"{connect().rank}.json").write_text(json.dumps(found))
