"""Training steps of this project, compared with those of other systems on the same batches.

    make bench-peers                                      creates their environment, and measures
    python3 -m benchmarks.peers [--shape NAME] [--batch N] [--peers NAME ...] [--rounds N] [--steps N]

Each system runs in a process of its own, on all cores of this one. A round measures each peer right
before or after ours; the others wait. Before, all take the same first steps from the same weights,
and their losses and changed rows are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dlrm import cli

with cli.project_environment():
    import numpy as np

    from benchmarks.peers.case import DATA, SQUARE, TrainCase
    from benchmarks.peers.summary import PeerResult, lines, turn_of
    from benchmarks.peers.worker import OURS, PRODUCT, SYSTEMS, SystemWorker
    from benchmarks.ranks import ROOT
    from benchmarks.shapes import DEMO, NUM_DENSE, SHAPES
    from dlrm.data import SyntheticSource, write_synthetic

CASES = {"demo": DEMO, **SHAPES}
SAMPLES = 1 << 18
LEARNING_RATE = 1.0
CHECKED_STEPS = 5
WARMUP_STEPS = 5
LOSS_TOLERANCE, ROW_TOLERANCE = 1e-6, 1e-2
PEERS = [name for name, kind in SYSTEMS.items() if kind.peer]
PEER_PYTHON = ROOT / ".venv-peers/bin/python"


def prepare(shape: str, batch: int) -> TrainCase:
    """Describes what is trained, and writes the samples if they are not there.

    Raises:
        ValueError: The folder holds other samples.
    """
    config = CASES[shape].config(batch)
    folder = ROOT / "build/peers" / shape
    source = SyntheticSource(CASES[shape].vocab_sizes, NUM_DENSE, SAMPLES, seed=0)
    write_synthetic(folder / DATA, source)
    return TrainCase(
        shape,
        batch,
        str(folder),
        NUM_DENSE,
        CASES[shape].vocab_sizes,
        config.model.bottom_mlp,
        config.model.top_mlp,
        LEARNING_RATE,
    )


def start(names: Sequence[str], case: TrainCase, python: Path, stack: Any) -> dict[str, Any]:
    """Starts the systems, ours first, as it writes the first weights.

    A peer that cannot run is left out, with a line that says why.

    Raises:
        ValueError: Ours cannot run, or a system has read other data.
    """
    workers: dict[str, SystemWorker] = {}
    for name in (OURS, PRODUCT, *names):
        kind = SYSTEMS[name]
        try:
            worker = SystemWorker(name, case, str(python) if kind.peer else sys.executable)
        except (ValueError, OSError) as error:
            if not kind.peer:
                raise
            print(f"  left out: {error}", flush=True)
            continue
        stack.callback(worker.close)
        ready, ours = worker.ready, workers.get(OURS, worker).ready
        print(f"  {kind.title}: {ready['versions']}, data {ready['checksum']}", flush=True)
        if ready["checksum"] != ours["checksum"]:
            raise ValueError(
                f"{kind.title}: expected the data of ours, {ours['checksum']}, found "
                f"{ready['checksum']}; remove {case.folder}"
            )
        workers[name] = worker
    return workers


def compare(workers: dict[str, Any], names: Sequence[str]) -> list[PeerResult]:
    """Lets all take the same first steps; returns the peers that train what ours does.

    A peer whose losses or rows differ is left out, with a line that says by how much.
    """
    answers, changes = {}, {}
    for name in (OURS, *names):
        answers[name] = workers[name].train(range(CHECKED_STEPS), rows=True)
        changes[name] = np.subtract(answers[name]["rows"], workers[name].ready["rows"])
    found = []
    losses = np.array(answers[OURS]["losses"])
    print(f"  losses, ours: {', '.join(f'{loss:.7f}' for loss in losses)}")
    for name in names:
        difference = np.abs(np.array(answers[name]["losses"]) - losses)
        moved = np.abs(changes[name] - changes[OURS]).max() / np.abs(changes[OURS]).max()
        peer = PeerResult(SYSTEMS[name].title, workers[name].ready["versions"])
        peer.loss_error, peer.row_error = float((difference / losses).max()), float(moved)
        if peer.loss_error < LOSS_TOLERANCE and peer.row_error < ROW_TOLERANCE:
            found.append(peer)
        else:
            print(
                f"  left out: {peer.name} trains something else: losses differ by "
                f"{peer.loss_error:.1e}, changes of rows by {peer.row_error:.1e}",
                flush=True,
            )
    return found


def numbers(steps: int, total: int) -> Iterator[list[int]]:
    """Yields the batches of one turn after another, through all of them again and again."""
    first = 0
    while True:
        yield [(first + i) % total for i in range(steps)]
        first += steps


def take_turn(worker: Any, batches: Sequence[int]) -> Any:
    """Lets a system take its steps."""
    answer = worker.train(batches)
    return turn_of(answer["seconds"], answer["cpu"])


def operations_of(case: TrainCase) -> int:
    """The floating-point operations of a step's products."""
    with cli.stderr_on_failure():  # TensorFlow announces itself
        from dlrm.train.products import products
    each = products(
        case.num_dense, len(case.vocab_sizes), tuple(case.bottom_mlp), tuple(case.top_mlp)
    )
    return case.batch * each


def measure(
    case: TrainCase, names: Sequence[str], python: Path, rounds: int, steps: int
) -> Iterator[str]:
    """Measures a case; yields the lines of its table."""
    with contextlib.ExitStack() as stack:
        workers = start(names, case, python, stack)
        running = [name for name in names if name in workers]
        titles = {SYSTEMS[name].title: name for name in running}
        peers = compare(workers, running)
        ours = workers[OURS]
        turns = numbers(steps, ours.ready["batches"])
        for worker in workers.values():
            worker.train(range(WARMUP_STEPS))
        product: list[float] = []
        for number in range(rounds):
            product += workers[PRODUCT].train(range(5))["seconds"]
            for peer in peers:
                both = [ours, workers[titles[peer.name]]]
                batches = next(turns)
                order = both[:: 1 if number % 2 else -1]
                taken = {id(worker): take_turn(worker, batches) for worker in order}
                peer.pairs.append((taken[id(both[0])], taken[id(both[1])]))
    rate, operations = 2 * SQUARE**3 / statistics.median(product), operations_of(case)
    yield f"  large products: {rate / 1e9:.0f} GFLOP/s"
    yield from lines(peers, ours.ready["versions"], case.batch, rate, operations)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table for each case; returns the exit code."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=sorted(CASES), action="append", help="default: all, in turn")
    add("--batch", type=int, action="append", help="samples of a step (default: 2048 and 8192)")
    add("--peers", nargs="+", choices=PEERS, default=PEERS, help="default: all")
    add("--python", type=Path, default=PEER_PYTHON, help="the peers' interpreter")
    add("--rounds", type=int, default=7, help="pairs of each peer (default: 7)")
    add("--steps", type=int, default=20, help="steps of a turn (default: 20)")
    options = parser.parse_args(arguments)
    for shape in options.shape or CASES:
        for batch in options.batch or (2048, 8192):
            print(f"{CASES[shape].title}, batch {batch}, float32", flush=True)
            case = prepare(shape, batch)
            for line in measure(case, options.peers, options.python, options.rounds, options.steps):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
