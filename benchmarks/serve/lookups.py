"""The scorer by what its tables hold: a row for every id, rows of known ids alone, bags of ids.

    python3 -m benchmarks.serve.lookups [--shape kaggle|mlperf_mlps] [--most_rows N] [--rounds N]
        [--seconds S]

All contenders read the same rows with the same layers, in turn; those with bags of several ids read
more of them. Known ids are spread over 2^31 - 1; `others` are a tenth of the ids, without a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.ranks import ROOT
    from benchmarks.serve.contender import THREADS
    from benchmarks.serve.models import Variant, artifact
    from benchmarks.shapes import NUM_DENSE, SHAPES
    from dlrm.checkpoint.manifest import ModelShape
    from dlrm.checkpoint.safetensors_file import write_tensors
    from serving.artifact import IDS, KNOWN_IDS_FILE, Artifact, KnownIds, read_artifact
    from serving.scorer import Scorer

LARGEST = 2**31 - 1
BATCHES = (1, 64, 2048)
LONGEST = 9  # ids of a bag, of which there are five on average
OTHERS = 0.1  # of the ids
ALL_IDS = "a row for every id"
SEED = 1


class Contender(NamedTuple):
    """An artifact, and what it is asked.

    Attributes:
        folder: The artifact.
        ids: int32 [samples, C], of which a request takes the first.
        per_sample: Number of ids of a sample, on average.
    """

    folder: Path
    ids: NDArray[np.int32]
    per_sample: float


def known_ids(rows: int) -> NDArray[np.int32]:
    """The ids of a table of so many rows, the first of which is that of all others."""
    return (np.arange(rows - 1, dtype=np.int64) * (LARGEST // rows)).astype(np.int32)


def derived(plain: Artifact, name: str, model: ModelShape, known: KnownIds | None) -> Path:
    """The same rows and layers as those of another model."""
    folder = plain.folder.with_name(f"{plain.folder.name}-{name.replace(' ', '_')}")
    if folder.exists():
        return folder
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    unfinished.mkdir(exist_ok=True)
    files = dict(plain.files)
    for file in files:
        with contextlib.suppress(FileExistsError):
            os.link(plain.folder / file, unfinished / file)
    if known is not None:
        ids = np.concatenate([known_ids(rows) for rows in plain.model.vocab_sizes])
        files[KNOWN_IDS_FILE] = write_tensors(unfinished / KNOWN_IDS_FILE, {IDS: ids})
    changed = dataclasses.replace(
        plain, folder=unfinished, model=model, files=files, known_ids=known
    )
    changed.write()
    return unfinished.rename(folder)


def contenders(folder: Path) -> dict[str, Contender]:
    """All contenders by name, from an artifact with a row for every id."""
    plain = read_artifact(folder)
    sizes, random = plain.model.vocab_sizes, np.random.default_rng(SEED)
    print("seed", SEED)
    rows = np.stack([random.integers(0, size, BATCHES[-1]) for size in sizes], axis=1)
    tables = len(sizes)

    def ids_of(rows: NDArray[np.int64], others: float) -> NDArray[np.int32]:
        columns = []
        for column, size in zip(rows.T, sizes):
            ids = np.append(known_ids(size), LARGEST - 1)[column - 1]  # row 0: an id without one
            unknown = random.random(len(ids)) < others
            columns.append(np.where(unknown, random.integers(0, LARGEST, len(ids)), ids))
        return np.stack(columns, axis=1).astype(np.int32)

    found = {ALL_IDS: Contender(folder, rows.astype(np.int32), tables)}
    unbounded = dataclasses.replace(plain.model, vocab_sizes=(LARGEST,) * tables, dynamic=True)
    counts = tuple(size - 1 for size in sizes)
    for name, seed, others in (
        ("known ids", None, 0.0),
        ("known ids and others, shared row", None, OTHERS),
        ("known ids and others, initial values", 1, OTHERS),
    ):
        path = derived(plain, name, unbounded, KnownIds(counts, seed))
        found[name] = Contender(path, ids_of(rows, others), tables)
    for name, most in (("bags of one id", 1), (f"bags of 1 to {LONGEST} ids", LONGEST)):
        model = dataclasses.replace(
            plain.model, pooling=("sum",) * tables, max_ids=(most,) * tables
        )
        lengths = random.integers(1, most + 1, (BATCHES[-1], tables, 1))
        in_bags = random.integers(0, np.array(sizes)[:, None], (BATCHES[-1], tables, most))
        in_bags[:, :, 0] = rows
        ids = np.where(np.arange(most) < lengths, in_bags, -1).reshape(len(rows), -1)
        path = derived(plain, name, model, None)
        found[name] = Contender(path, ids.astype(np.int32), float(lengths.sum() / len(rows)))
    return found


def latency(score: Callable[..., Any], dense: Any, ids: Any, seconds: float) -> float:
    """The median seconds of a call, repeated for so long."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        score(dense, ids)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def main() -> int:
    """Prints a table of each batch size; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="kaggle")
    parser.add_argument(
        "--most_rows", type=int, default=1 << 20, help="of a table (default: 1,048,576)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="of each measurement (default: 0.2)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build" / "serve_benchmark",
        help="where models are kept for the next run (default: build/serve_benchmark)",
    )
    flags = parser.parse_args()
    shape = SHAPES[flags.shape]
    sizes = tuple(min(size, flags.most_rows) for size in shape.vocab_sizes)
    shape = dataclasses.replace(shape, vocab_sizes=sizes)
    folder = flags.folder / f"{flags.shape}-{flags.most_rows}"
    found = contenders(artifact(folder, shape, Variant("float32", "float32")))
    dense = np.random.default_rng(2).random((BATCHES[-1], NUM_DENSE), np.float32)
    figures: dict[tuple[str, int], list[float]] = {}
    with contextlib.ExitStack() as stack:
        scorers = {
            name: stack.enter_context(Scorer.open(one.folder, threads=THREADS, verify=False))
            for name, one in found.items()
        }
        for number in range(flags.rounds + 1):
            for batch in BATCHES:
                for name, one in found.items():
                    score = scorers[name].score
                    taken = latency(score, dense[:batch], one.ids[:batch], flags.seconds)
                    if number:
                        figures.setdefault((name, batch), []).append(taken)
    print(f"{shape.title}, at most {flags.most_rows:,} rows a table: {sum(sizes):,} rows")
    for batch in BATCHES:
        print(f"batch {batch:<32} latency   samples/s       ids/s   of {ALL_IDS}")
        plain = np.array(figures[ALL_IDS, batch])
        for name, one in found.items():
            seconds = np.array(figures[name, batch])
            rate = batch / np.median(seconds)
            print(
                f"  {name:36}{np.median(seconds) * 1e6:>8,.0f}us {rate:>11,.0f}"
                f"{rate * one.per_sample:>12,.0f}   {np.median(plain / seconds):.3f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
