"""Bags of ids beside one id in each table: reading, looking up, and bytes between ranks.

    python3 -m benchmarks.bags [--samples N] [--batch N] [--rounds N]

The tables and the numbers of ids are MLPerf's multi-hot ones, 214 ids of a sample against 26, with
tables of at most a million rows. One-hot samples and bags are measured in turn, and the ratios are
medians of the rounds' ratios. Reading takes every batch of a split folder and does nothing with
it; the bound reads the bytes of its files into one buffer. Looking up and updating is one rank's
work on the tables of one step, without a model. Between two and three ranks, the bytes that a rank
sends in a step are counted, beside those that `dlrm.embedding.pooling_cost` expects: pooled at the
owners of rows, and with --compress, where each table is pooled where it takes fewer bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Callable

from benchmarks import ranks
from dlrm import cli

with cli.project_environment():
    from benchmarks.shapes import NUM_DENSE
    from dlrm.data import Batches, SplitSource, SyntheticSource, write_synthetic
    from preprocess.multi_hot import MLPERF_HOTNESS, MLPERF_TABLE_SIZES

ROWS, WIDTH = 1_000_000, 16
SIZES = tuple(min(rows, ROWS) for rows in MLPERF_TABLE_SIZES)
ONE, BAGS = "one id", "bags"
HOTNESS = {ONE: (1,) * len(SIZES), BAGS: MLPERF_HOTNESS}


def source_of(kind: str, samples: int) -> SyntheticSource:
    """The samples of a kind."""
    return SyntheticSource(SIZES, NUM_DENSE, samples, 0, HOTNESS[kind])


def read_all(folder: Path, batch: int) -> None:
    """Takes every batch of a folder."""
    for _ in Batches(SplitSource(folder), batch, 0, 1, drop_remainder=True):
        pass


def read_bytes(folder: Path) -> None:
    """Reads the bytes of all files of a folder."""
    buffer = memoryview(bytearray(1 << 20))
    for path in folder.glob("*.bin"):
        with FileIO(path) as file:
            while file.readinto(buffer):
                pass


def in_turn(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each action in each round; a first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def print_reading(samples: int, batch: int, rounds: int) -> None:
    """Measures the readers."""
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name, kind) for kind in HOTNESS}
        actions: dict[str, Callable[[], object]] = {}
        for kind, folder in folders.items():
            write_synthetic(folder, source_of(kind, samples))
            actions[kind] = partial(read_all, folder, batch)
            actions[f"{kind}, bytes alone"] = partial(read_bytes, folder)
        seconds = in_turn(actions, rounds)
        for kind, folder in folders.items():
            size = sum(path.stat().st_size for path in folder.glob("*.bin"))
            pairs = zip(seconds[f"{kind}, bytes alone"], seconds[kind])
            ids = samples * sum(HOTNESS[kind])
            middle = statistics.median(seconds[kind])
            ratio = statistics.median(alone / whole for alone, whole in pairs)
            print(
                f"reading  {kind:7s} {size / middle / 1e9:6.2f} GB/s  "
                f"{ids / middle / 1e6:8.1f} M ids/s  {ratio:5.2f} of reading the bytes"
            )


def tables_and_step(kind: str, batch: int, collective: Any, compress: bool) -> tuple[Any, ...]:
    """The tables, a batch of this rank, and a compiled step on it."""
    import tensorflow as tf

    from dlrm.distributed import devices
    from dlrm.embedding import FusedTable, create

    source = source_of(kind, batch * collective.size)
    first = batch * collective.rank
    ids = tf.nest.map_structure(tf.constant, source.read(first, first + batch)[1])
    tables = create(
        "alltoall",
        FusedTable(SIZES, WIDTH, 0),
        collective,
        compress=compress,
        bag_layout=source.bag_layout,
        table_groups=devices.lanes() if collective.size == 1 else 1,
    )

    @tf.function(input_signature=[tables.ids_spec(batch)], autograph=False)
    def step(ids: Any) -> tf.Tensor:
        lookup = tables.lookup(tables.route(ids))
        tables.update(lookup, lookup.vectors, tf.constant(1e-3))
        return tf.add_n([tf.reduce_sum(part) for part in lookup.vectors])

    return tables, ids, step


def taken(step: Callable[[Any], Any], ids: Any) -> float:
    """Takes a step, to its end."""
    return float(step(ids))


def print_looking_up(batch: int, rounds: int) -> None:
    """Measures route, lookup and update of one rank."""
    from dlrm.distributed.collective import Collective

    actions: dict[str, Callable[[], object]] = {}
    for kind in HOTNESS:
        _, ids, step = tables_and_step(kind, batch, Collective(), compress=False)
        actions[kind] = partial(taken, step, ids)
    seconds = in_turn(actions, rounds)
    rates = {
        kind: batch * sum(HOTNESS[kind]) / statistics.median(seconds[kind]) for kind in HOTNESS
    }
    for kind, rate in rates.items():
        print(f"looking up and updating  {kind:7s} {rate / 1e6:6.2f} M ids/s")
    per_id = sum(MLPERF_HOTNESS) / len(SIZES)
    pairs = zip(seconds[ONE], seconds[BAGS])
    ratio = statistics.median(one / bags for one, bags in pairs) * per_id
    print(f"looking up and updating  bags reach {ratio:.2f} of the rate of single ids")


def rank(batch: int, rounds: int) -> None:
    """One rank of the exchange: counts and times steps, with and without --compress."""
    from dlrm.distributed.connect import connect
    from dlrm.embedding.pooling_cost import bytes_per_bag, pooled_at_owner

    collective = connect()
    layout = source_of(BAGS, 1).bag_layout
    assert layout is not None
    found = {}
    for compress in (False, True):
        tables, ids, step = tables_and_step(BAGS, batch, collective, compress)
        counted = tables.traffic(tables.route(ids)).total
        costs: dict[str, Any] = {
            "compress": compress,
            "ranks": collective.size,
            "local_batch": batch,
            "key_bytes": 4,
            "vector_bytes": 4 * WIDTH,
        }
        choice = pooled_at_owner(layout, SIZES, **costs)
        expected = sum(
            bytes_per_bag(layout, table, rows, **costs)[not at_owner]
            for table, (rows, at_owner) in enumerate(zip(SIZES, choice))
        )
        seconds = in_turn({BAGS: partial(taken, step, ids)}, rounds)[BAGS]
        found["compress" if compress else "at the owners"] = {
            "counted": counted,
            "expected": expected * batch * (collective.size - 1) / collective.size,
            "tables at the owners": sum(choice),
            "seconds": statistics.median(seconds),
        }
    if collective.rank == 0:
        ranks.report(found)


def print_exchange(batch: int, rounds: int) -> None:
    """Counts and times the exchange of two and three ranks."""
    unpooled = batch * sum(MLPERF_HOTNESS) * (4 + 2 * 4 * WIDTH)
    for size in (2, 3):
        arguments = ["--rank", f"--batch={batch}", f"--rounds={rounds}"]
        for name, of in ranks.measure(size, "benchmarks.bags", arguments).items():
            share = unpooled * (size - 1) / size
            print(
                f"{size} ranks  {name:13s} {of['counted'] / 1e6:7.2f} MB of a rank, expected "
                f"{of['expected'] / 1e6:7.2f}, {of['counted'] / share:.2f} of every id's row; "
                f"{of['tables at the owners']} tables pooled at the owners; "
                f"{of['seconds'] * 1e3:.0f} ms a step"
            )


def main() -> int:
    """Measures and prints; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=262_144, help="samples in the files")
    parser.add_argument("--batch", type=int, default=2048, help="samples of a rank's step")
    parser.add_argument("--rounds", type=int, default=7, help="the median counts (default: 7)")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.batch, options.rounds)
        return 0
    print(json.dumps({"tables": len(SIZES), "ids": sum(MLPERF_HOTNESS), "width": WIDTH}))
    print_reading(options.samples, options.batch, options.rounds)
    print_looking_up(options.batch, options.rounds)
    print_exchange(options.batch, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
