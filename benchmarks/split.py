"""Speed of `split_bin.split` beside a plain copy of the same bytes.

    python3 -m benchmarks.split [--samples N] [--rounds N] [--folder DIR]

Both read a warm file and end with fsync; they alternate, so that a slow moment of the disk meets
both. The copy is the faster of two: by the kernel (`shutil.copyfile`) and by a loop over a buffer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Callable

import numpy as np

from dlrm.formats.records import RecordLayout
from split_bin import split

# The ids of the MLPerf vocabulary's columns, so that the range check has its usual work.
_SIZES = (
    *(39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10),
    *(2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36),
)
_NUM_DENSE = 13


def make_record_file(path: Path, samples: int, seed: int = 0) -> None:
    """Write random records: label 0 or 1, small dense integers, uniform ids."""
    rng = np.random.default_rng(seed)
    block = 1 << 16
    with open(path, "wb") as file:
        for start in range(0, samples, block):
            count = min(block, samples - start)
            records = np.empty((count, 1 + _NUM_DENSE + len(_SIZES)), np.int32)
            records[:, 0] = rng.integers(0, 2, count)
            records[:, 1 : 1 + _NUM_DENSE] = rng.integers(0, 1000, (count, _NUM_DENSE))
            records[:, 1 + _NUM_DENSE :] = rng.integers(0, _SIZES, (count, len(_SIZES)))
            file.write(records.tobytes())


def copy_by_kernel(source: Path, target: Path) -> None:
    """Copy inside the kernel, then fsync."""
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)


def copy_by_buffer(source: Path, target: Path) -> None:
    """Copy through a buffer that stays in cache, then fsync."""
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


def main() -> None:
    """Measure, and print one line a method and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = folder / "train_data.bin"
        make_record_file(source, options.samples)
        size = source.stat().st_size
        layout = RecordLayout(_NUM_DENSE, len(_SIZES), _SIZES)
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


if __name__ == "__main__":
    main()
