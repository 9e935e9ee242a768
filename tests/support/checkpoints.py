"""What tests of checkpoints share: tables in memory, and the memory that a command needs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tests.support.processes import run


class ArrayTables:
    """The rows of all keys in memory, as the only rank."""

    state = ()  # plain SGD remembers nothing

    def __init__(self, rows: NDArray[Any]) -> None:
        self.rows = rows

    def read_rows(self, first: int, last: int) -> NDArray[Any]:
        """Returns rows [last - first, width]."""
        return self.rows[first:last]

    def write_rows(self, rows: NDArray[Any], values: NDArray[Any]) -> None:
        """Overwrites the rows that `rows` names."""
        self.rows[rows] = values


def peak_megabytes(*words: str | Path) -> int:
    """Runs a command of `dlrm.checkpoint`, which must succeed; returns the most memory it held."""
    # The kernel's own mark: getrusage's is at least that of the process that started this one.
    code = (
        "import sys; from dlrm.checkpoint.__main__ import main; code = main(sys.argv[1:]); "
        "print(open('/proc/self/status').read()); sys.exit(code)"
    )
    env = {"POLARS_MAX_THREADS": "4"}  # each holds a little
    ended = run([sys.executable, "-c", code, *words], time_limit=120, env=env)
    assert ended.code == 0, ended.output
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", ended.output)
    peak = int(kilobytes) >> 10
    print(f"{words[0]}: {peak} MB, {ended.seconds:.1f} s")
    return peak
