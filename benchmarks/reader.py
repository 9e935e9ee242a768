"""Samples per second of the readers, compared with reading the bytes, and packed with plain ids.

    python3 -m benchmarks.reader [--samples N] [--rounds N] [--readers N] [--folder DIR]

One process, warm files, 13 dense columns with logarithm and the 26 tables of MLPerf. The bound
reads the bytes of the three column files into one reused buffer and does nothing with them. It
bounds the split files with plain ids; the other rows are printed for comparison only. Packed and
plain ids are read in turn, and their ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Callable

from dlrm import cli

with cli.project_environment():
    import numpy as np

    from benchmarks.shapes import MLPERF_VOCAB_SIZES as SIZES
    from benchmarks.shapes import NUM_DENSE
    from dlrm.data import Batches, PerCategorySource, Source, SplitSource, SyntheticSource
    from dlrm.data.per_category import id_type
    from dlrm.formats.metadata import Metadata, write_metadata
    from dlrm.formats.packed_ids import plan

BATCHES = (8192, 65536)
PLAIN, PACKED = "split files", "split files, packed"
COLUMN_FILES = ("label.bin", "dense.bin", "category.bin")


def make_split(folder: Path, samples: int, *, packed: bool = False, seed: int = 0) -> None:
    """Writes random column files in the default variant, the same samples packed or plain."""
    rng = np.random.default_rng(seed)
    rng.integers(0, 2, samples, np.int32).tofile(folder / "label.bin")
    rng.integers(0, 1000, (samples, NUM_DENSE), np.int32).tofile(folder / "dense.bin")
    ids = rng.integers(0, SIZES, (samples, len(SIZES)), np.int32)
    packing = plan(SIZES) if packed else None
    (ids if packing is None else packing.pack(ids)).tofile(folder / "category.bin")
    types = ("int32", "int32", "int32")
    description = Metadata(SIZES, *types, True, NUM_DENSE, packed_ids=packing)
    write_metadata(folder, description)


def make_per_category(folder: Path, samples: int, seed: int = 0) -> None:
    """Writes random column files, one per table."""
    rng = np.random.default_rng(seed)
    rng.integers(0, 2, samples, np.uint8).tofile(folder / "label.bin")
    rng.random((samples, NUM_DENSE), np.float32).astype(np.float16).tofile(folder / "dense.bin")
    for table, size in enumerate(SIZES):
        ids = rng.integers(0, size, samples).astype(id_type(size))
        ids.tofile(folder / f"category_{table}.bin")
    (folder / "metadata.json").write_text(json.dumps({"vocab_sizes": SIZES}))


def read_plain(folder: Path, batch: int, samples: int) -> None:
    """Reads the three column files, a batch of each in turn, into one buffer."""
    sizes = [4, 4 * NUM_DENSE, 4 * len(SIZES)]
    buffer = memoryview(bytearray(batch * max(sizes)))
    with ExitStack() as stack:
        files = [stack.enter_context(FileIO(folder / name)) for name in COLUMN_FILES]
        for _ in range(samples // batch):
            for file, size in zip(files, sizes):
                file.readinto(buffer[: batch * size])


def drain(source: Source, batch: int, readers: int) -> None:
    """Takes every batch of an epoch and does nothing with it."""
    batches = Batches(
        source, batch, 0, 1, drop_remainder=True, readers=readers, lookahead=1 + readers
    )
    for _ in batches:
        pass


def _seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> int:
    """Measures in turn; prints a line per reader and batch size, and returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=2_097_152, help="samples in the files")
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (default: 5)")
    parser.add_argument("--readers", type=int, default=1, help="number of reading threads")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    options = parser.parse_args()
    samples, readers = options.samples, options.readers
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        split, packed, parts = (Path(name) / part for part in ("split", "packed", "parts"))
        for folder, make in (
            (split, make_split),
            (packed, partial(make_split, packed=True)),
            (parts, make_per_category),
        ):
            folder.mkdir()
            make(folder, samples)
        sources: dict[str, Source] = {
            PLAIN: SplitSource(split),
            PACKED: SplitSource(packed),
            "per-category files": PerCategorySource(parts),
            "synthetic": SyntheticSource(SIZES, NUM_DENSE, samples, seed=0),
        }
        print(f"{samples} samples, median of {options.rounds} rounds, {readers} reading threads")
        for batch in BATCHES:
            actions: dict[str, Callable[[], None]] = {
                "plain reading": partial(read_plain, split, batch, samples)
            }
            for label, source in sources.items():
                actions[label] = partial(drain, source, batch, readers)
            seconds: dict[str, list[float]] = {label: [] for label in actions}
            for _ in range(options.rounds + 1):
                for label, action in actions.items():
                    seconds[label].append(_seconds(action))
            done = samples // batch * batch
            # The first round warms the page cache.
            rates = {label: done / statistics.median(times[1:]) for label, times in seconds.items()}
            for label, rate in rates.items():
                print(
                    f"batch {batch:6d}  {label:20s} {rate / 1e6:7.2f} M samples/s  "
                    f"{rate / rates['plain reading']:5.2f} of plain reading"
                )
            ratio = statistics.median(
                plain / packed for plain, packed in zip(seconds[PLAIN][1:], seconds[PACKED][1:])
            )
            sizes = [(folder / "category.bin").stat().st_size for folder in (packed, split)]
            print(
                f"batch {batch:6d}  packed ids reach {ratio:.2f} of plain ids' rate (target: 0.90) "
                f"with {1 - sizes[0] / sizes[1]:.0%} fewer bytes of ids"
            )
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
