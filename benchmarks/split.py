"""Speed of `dlrm.data.split.split` compared with a plain copy of the same bytes.

    python3 -m benchmarks.split [--samples N] [--rounds N] [--folder DIR]

Both read a warm file and end with fsync; they alternate, so that a slow moment of the disk meets
both. The copy is the faster of two: one by the kernel (`shutil.copyfile`), one through a buffer.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

from dlrm import cli

with cli.project_environment():
    import numpy as np

    # MLPerf's vocabularies give the range check its usual work.
    from benchmarks.shapes import MLPERF_VOCAB_SIZES as SIZES
    from benchmarks.shapes import NUM_DENSE
    from dlrm.data.split import split
    from dlrm.formats.records import RecordLayout


def make_record_file(path: Path, samples: int, seed: int = 0) -> None:
    """Writes random records: label 0 or 1, small dense integers, uniform ids."""
    rng = np.random.default_rng(seed)
    block = 1 << 16
    with open(path, "wb") as file:
        for start in range(0, samples, block):
            count = min(block, samples - start)
            records = np.empty((count, 1 + NUM_DENSE + len(SIZES)), np.int32)
            records[:, 0] = rng.integers(0, 2, count)
            records[:, 1 : 1 + NUM_DENSE] = rng.integers(0, 1000, (count, NUM_DENSE))
            records[:, 1 + NUM_DENSE :] = rng.integers(0, SIZES, (count, len(SIZES)))
            file.write(records.tobytes())


def copy_by_kernel(source: Path, target: Path) -> None:
    """Copies inside the kernel, then calls fsync."""
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)


def copy_by_buffer(source: Path, target: Path) -> None:
    """Copies through a buffer that stays in cache, then calls fsync."""
    buffer = bytearray(1 << 19)
    view = memoryview(buffer)
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            writer.write(view[:count])
        os.fsync(writer.fileno())


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> int:
    """Measures; prints a line per method and the ratio, and returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=2_000_000, help="samples in the file")
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (default: 5)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = folder / "train_data.bin"
        make_record_file(source, options.samples)
        size = source.stat().st_size
        layout = RecordLayout(NUM_DENSE, len(SIZES), SIZES)
        actions: dict[str, Callable[[], object]] = {
            "copy by kernel": lambda: copy_by_kernel(source, folder / "copy.bin"),
            "copy by buffer": lambda: copy_by_buffer(source, folder / "copy.bin"),
            "split": lambda: split(source, folder / "split", layout),
        }
        seconds: dict[str, list[float]] = {label: [] for label in actions}
        for _ in range(options.rounds + 1):
            for label, action in actions.items():
                (folder / "copy.bin").unlink(missing_ok=True)
                shutil.rmtree(folder / "split", ignore_errors=True)
                os.sync()
                seconds[label].append(_seconds(action))
    # The first round warms the page cache.
    medians = {label: statistics.median(values[1:]) for label, values in seconds.items()}
    print(f"{options.samples} samples, {size / 1e6:.0f} MB, median of {options.rounds} rounds")
    for label, median in medians.items():
        print(f"{label:15s} {median:7.3f} s {size / median / 1e6:8.0f} MB/s")
    copy = min(medians["copy by kernel"], medians["copy by buffer"])
    print(f"split reaches {copy / medians['split']:.2f} of the faster copy (target: 0.50)")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
