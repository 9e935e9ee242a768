"""Time and memory of saving and loading large tables on two ranks, compared with `cp`.

    python3 -m benchmarks.checkpoint [--gib G] [--rounds N] [--folder DIR]

Save and `cp` of the same bytes alternate, so that a slow moment of the disk meets both. A save ends
with everything on the disk; `cp` is timed alone, when its bytes may still be in memory only, and
with the `sync` that makes the two comparable. Files are read from the page cache. The extra memory
is how far the resident size rises during a save or load, on the rank where it rises more.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

from benchmarks import ranks
from dlrm import cli

RANKS = 2
WIDTH = 64


def memory(field: str) -> int:
    """Returns a size of this process in bytes, such as VmRSS or its peak, VmHWM."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found, field
    return 1024 * int(found[1])


def measured(action: Callable[[], object]) -> tuple[float, int]:
    """Runs an action; returns its seconds and the bytes by which the resident size rose."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    start = time.perf_counter()
    action()
    return time.perf_counter() - start, memory("VmHWM") - before


def work(folder: Path, rows: int, rounds: int) -> None:
    """Saves and loads on one rank; rank 0 reports the figures."""
    from dlrm.checkpoint.manifest import ModelShape, Position, read_manifest
    from dlrm.checkpoint.restore import restore
    from dlrm.checkpoint.save import Checkpoints
    from dlrm.checkpoint.state import RunRecord, State
    from dlrm.distributed import devices
    from dlrm.distributed.connect import connect
    from dlrm.embedding import FusedTable, create

    collective = connect()
    devices.claim(collective.local_rank, core_per_operation=True)
    tables = create(
        "alltoall",
        FusedTable((rows,), WIDTH, seed=1),
        collective,
        compress=True,
        bad_ids="error",
        exchange_dtype="float32",
    )
    state = State({}, tables)
    run = RunRecord(ModelShape(1, (rows,), WIDTH, (WIDTH,), (1,)), {}, {})
    checkpoints = Checkpoints(folder / "checkpoints", collective, run, keep=1)
    figures: dict[str, list[Any]] = {"save": [], "load": [], "cp": [], "cp and sync": []}
    for number in range(rounds):
        save = measured(lambda: checkpoints.save(state, Position(number, 0, 0)))  # noqa: B023
        path = next((folder / "checkpoints").glob("step-*"))
        manifest = read_manifest(path)
        load = measured(lambda: restore(path, manifest, state, collective))  # noqa: B023
        for name, (seconds, extra) in (("save", save), ("load", load)):
            both = [float(text) for text in collective.gather_text(str(extra))]
            figures[name].append((seconds, max(both)))
        if collective.rank == 0:
            start = time.perf_counter()
            subprocess.run(["cp", "-r", path, folder / "copy"], check=True)
            figures["cp"].append((time.perf_counter() - start, 0))
            subprocess.run(["sync", folder / "copy", *(folder / "copy").iterdir()], check=True)
            figures["cp and sync"].append((time.perf_counter() - start, 0))
            shutil.rmtree(folder / "copy")
        collective.together(lambda: None)
    if collective.rank == 0:
        ranks.report(figures)


def main() -> int:
    """Runs the ranks and prints the table; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0, help="size of the tables (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (default: 3)")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    rows = int(flags.gib * 2**30 / (4 * WIDTH))
    if flags.rank:
        work(flags.rank, rows, flags.rounds)
        return 0
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        arguments = ["--rank", folder, "--gib", str(flags.gib), "--rounds", str(flags.rounds)]
        figures = ranks.measure(RANKS, "benchmarks.checkpoint", arguments)
    size = 4 * WIDTH * rows
    seconds = {name: statistics.median(s for s, _ in runs) for name, runs in figures.items()}
    print(f"{size / 2**30:.2f} GiB of tables on {RANKS} ranks, median of {flags.rounds}")
    for name, runs in figures.items():
        extra = max(rise for _, rise in runs)
        line = f"{name:12} {seconds[name]:6.2f} s  {size / seconds[name] / 1e9:5.2f} GB/s"
        print(line + (f"  extra memory {extra / 2**20:4.0f} MiB per rank" if extra else ""))
    for name in ("cp", "cp and sync"):
        print(f"save reaches {seconds[name] / seconds['save']:.2f} of the rate of {name}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
