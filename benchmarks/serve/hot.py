"""Hot and cold rows: hit rate and latency by the share of the rows that is kept in memory.

    python3 -m benchmarks.serve.hot [--shape mlperf_mlps|kaggle] [--samples N] [--calls N]

Within a table, use falls with a power of its rank, as in the logs of `preprocess.synthetic`. Rows
are sorted by counts of one part of the samples, and others are scored. Cold rows come from the page
cache, or from the disk: then the file's pages are dropped before the scorer opens.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.ranks import ROOT
    from benchmarks.serve.contender import THREADS
    from benchmarks.serve.models import Variant, artifact
    from benchmarks.shapes import NUM_DENSE, SHAPES, Shape
    from preprocess.click_model import power_law_ranks
    from serving.artifact import TABLES_FILE
    from serving.row_frequencies import write_counts
    from serving.scorer import Scorer

SHARES = (0.1, 0.3, 1.0)
EXPONENT = 1.1  # flatter than the synthetic logs' 1.6, under which a percent of the rows is enough
BLOCK = 1 << 16  # samples drawn at a time
BATCHES = (1, 64)


def skewed_ids(shape: Shape, samples: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Yields blocks of ids, int32 [<= BLOCK, T]; which rows are the most used ones is random."""
    scatter = np.random.default_rng(0)
    rows_of_rank = [scatter.permutation(rows).astype(np.int32) for rows in shape.vocab_sizes]
    random = np.random.default_rng(seed)
    for first in range(0, samples, BLOCK):
        ids = np.empty((min(BLOCK, samples - first), len(shape.vocab_sizes)), np.int32)
        for table, rows in enumerate(shape.vocab_sizes):
            ranks = power_law_ranks(random.random(len(ids), np.float32), rows, EXPONENT)
            ids[:, table] = rows_of_rank[table][ranks]
        yield ids


def ordered_artifact(folder: Path, shape: Shape, samples: int) -> Path:
    """Exports the float32 artifact whose rows are sorted by counts of the first samples."""
    counts_file = folder / "row_frequencies.safetensors"
    if not counts_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        sizes = np.array(shape.vocab_sizes, np.int64)
        first_keys = np.cumsum(sizes) - sizes
        counts = np.zeros(sizes.sum(), np.int64)
        for ids in skewed_ids(shape, samples, seed=1):
            np.add.at(counts, (ids + first_keys).reshape(-1), 1)
        write_counts(counts_file, counts, shape.vocab_sizes)
    return artifact(folder, shape, Variant("float32", "float32"), row_frequencies=counts_file)


def drop_pages(path: Path) -> None:
    """Asks the system to forget what it holds of a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: Path, shape: Shape, share: float, calls: int, from_disk: bool) -> None:
    """Prints a line for each batch size."""
    tables = path / TABLES_FILE
    for batch in BATCHES:
        ids = np.concatenate(list(skewed_ids(shape, batch * calls, seed=2)))
        dense = np.random.default_rng(3).random((batch, NUM_DENSE), np.float32)
        if from_disk:
            drop_pages(tables)
        with Scorer.open(path, hot_share=share, threads=THREADS, verify=False) as scorer:
            before = scorer.lookups()
            times = []
            for first in range(0, len(ids), batch):
                begin = time.perf_counter()
                scorer.score(dense, ids[first : first + batch])
                times.append(time.perf_counter() - begin)
            hot, cold = (now - then for now, then in zip(scorer.lookups(), before))
        p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e6
        print(
            f"  {share:4.0%} hot  {'disk' if from_disk else 'page cache':10}  batch {batch:3}  "
            f"hit rate {hot / (hot + cold):7.2%}  p50 {p50:8,.0f} us  p99 {p99:8,.0f} us",
            flush=True,
        )


def main() -> int:
    """Prints a table for each shape; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), action="append", help="default: kaggle alone"
    )
    parser.add_argument(
        "--samples", type=int, default=2_000_000, help="that are counted (default: 2,000,000)"
    )
    parser.add_argument(
        "--calls", type=int, default=5000, help="of each measurement (default: 5000)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build" / "serve_benchmark",
        help="where models are kept for the next run (default: build/serve_benchmark)",
    )
    flags = parser.parse_args()
    for name in flags.shape or ["kaggle"]:
        shape = SHAPES[name]
        path = ordered_artifact(flags.folder / name, shape, flags.samples)
        print(f"{shape.title}, float32 rows, ids by a power law of exponent {EXPONENT}")
        for share in SHARES:
            for from_disk in (False, True) if share < 1 else (False,):
                measure(path, shape, share, flags.calls, from_disk)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
