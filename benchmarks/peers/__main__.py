"""Training steps of this project, compared with those of other systems on the same batches.

    make bench-peers                                      creates their environment, and measures
    python3 -m benchmarks.peers [--shape NAME] [--batch N] [--peers NAME ...] [--rounds N] ...

Each system runs in a process of its own, on all cores of this one. One peer after another starts
from the same weights as ours and takes the same first steps; losses and changed rows are compared.
Then both take turns, in which the other one waits.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dlrm import cli

with cli.project_environment():
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.peers.case import DATA, SQUARE, TrainCase
    from benchmarks.peers.plot import plot_peers
    from benchmarks.peers.summary import CaseResult, Difference, PeerResult, Turn
    from benchmarks.peers.worker import OURS, PRODUCT, SYSTEMS, SystemWorker
    from benchmarks.ranks import ROOT
    from benchmarks.shapes import CASES, NUM_DENSE
    from dlrm.data import SyntheticSource, write_synthetic

BATCHES = (2048, 8192)
SAMPLES = 1 << 18
LEARNING_RATE = 1.0  # large enough that a wrong update shows in the losses
CHECKED_STEPS = 5
LOSS_TOLERANCE, ROW_TOLERANCE = 1e-6, 1e-2
WARMUP_STEPS = 5
PRODUCTS = 5  # in each round
MOST_IDLE = 0.05  # of a core, which a system may take while it waits
PEERS = [name for name, kind in SYSTEMS.items() if kind.peer]
PEER_PYTHON = ROOT / ".venv-peers/bin/python"


class FirstSteps(NamedTuple):
    """What a system's first steps did.

    Attributes:
        losses: The loss of each step.
        changes: By how much they changed the rows that are compared.
    """

    losses: list[float]
    changes: NDArray[np.float64]


def prepare(shape: str, batch: int) -> TrainCase:
    """Describes what is trained, and writes the samples if they are not there.

    Raises:
        ValueError: The folder holds other samples.
    """
    folder = ROOT / "build/peers" / shape
    sizes = CASES[shape].vocab_sizes
    write_synthetic(folder / DATA, SyntheticSource(sizes, NUM_DENSE, SAMPLES, seed=0))
    model = CASES[shape].config(batch).model
    layers = model.bottom_mlp, model.top_mlp
    return TrainCase(shape, batch, str(folder), NUM_DENSE, sizes, *layers, LEARNING_RATE)


@contextlib.contextmanager
def running(name: str, case: TrainCase, python: str) -> Iterator[SystemWorker]:
    """Starts a system, says what it runs on and read, and ends it with the context."""
    worker = SystemWorker(name, case, python)
    try:
        ready = worker.ready
        print(f"  {SYSTEMS[name].title}: {ready['versions']}; data {ready['checksum']}", flush=True)
        yield worker
    finally:
        worker.close()


def first_steps(worker: SystemWorker) -> FirstSteps:
    """Lets a system take the steps that are compared, then some more to warm up."""
    answer = worker.train(range(CHECKED_STEPS), rows=True)
    worker.train(range(WARMUP_STEPS))
    return FirstSteps(answer["losses"], np.subtract(answer["rows"], worker.ready["rows"]))


def check_same(peer: SystemWorker, ours: SystemWorker, first: FirstSteps) -> Difference:
    """Checks that a peer trains what ours does; returns how far it is from that.

    Raises:
        ValueError: It read other data, or its losses or rows differ by more than rounding.
    """
    read, expected = peer.ready["checksum"], ours.ready["checksum"]
    if read != expected:
        raise ValueError(f"expected the data {expected} as ours, found {read}")
    other = first_steps(peer)
    found = Difference.between((first.losses, other.losses), (first.changes, other.changes))
    if not (found.losses < LOSS_TOLERANCE and found.rows < ROW_TOLERANCE):
        raise ValueError(f"it trains something else than ours: {found}")
    return found


def take_turns(
    ours: SystemWorker, peer: SystemWorker, product: SystemWorker, rounds: int, steps: int
) -> Iterator[tuple[Turn, Turn, list[float]]]:
    """Measures in rounds: the machine's products, then ours and the peer, or the other way round.

    Yields:
        Our turn and the peer's on the same batches; operations a second of the products.
    """
    numbers = itertools.cycle(range(ours.ready["batches"]))
    for number in range(rounds):
        seconds = product.train(range(PRODUCTS))["seconds"]
        batches = list(itertools.islice(numbers, steps))
        taken: dict[SystemWorker, Turn] = {}
        for worker in (ours, peer) if number % 2 else (peer, ours):
            answer = worker.train(batches)
            taken[worker] = Turn.of(answer["seconds"], answer["cpu"])
        yield taken[ours], taken[peer], [2 * SQUARE**3 / s for s in seconds]


def measure(case: TrainCase, options: Any) -> CaseResult:
    """Measures a case.

    A peer that cannot run, or that trains something else, is left out, with a line that says why.

    Raises:
        ValueError: Ours cannot run.
    """
    with contextlib.ExitStack() as stack:
        ours, product = (
            stack.enter_context(running(name, case, sys.executable)) for name in (OURS, PRODUCT)
        )
        first = first_steps(ours)
        print(f"  losses of ours: {', '.join(f'{loss:.7f}' for loss in first.losses)}", flush=True)
        result = CaseResult(
            CASES[case.shape].title, case.batch, operations_of(case), ours.ready["versions"]
        )
        for name in options.peers:
            title = SYSTEMS[name].title
            try:
                with running(name, case, str(options.python)) as peer:
                    difference = check_same(peer, ours, first)
                    pairs = []
                    for mine, other, rates in take_turns(
                        ours, peer, product, options.rounds, options.steps
                    ):
                        pairs.append((mine, other))
                        result.products += rates
                    result.peers.append(
                        PeerResult(title, peer.ready["versions"], difference, pairs)
                    )
                    report_idle(title, peer)
            except (ValueError, OSError) as error:
                print(f"  {title} is left out: {error}", flush=True)
        report_idle(SYSTEMS[OURS].title, ours)
    return result


def report_idle(title: str, worker: SystemWorker) -> None:
    """Says so if a system computed while it was to wait, which slows the others."""
    if worker.idle_share > MOST_IDLE:
        print(f"  {title} took {worker.idle_share:.2f} of a core while it waited", flush=True)


def operations_of(case: TrainCase) -> int:
    """The floating-point operations of a step's products."""
    with cli.stderr_on_failure():  # TensorFlow announces itself
        from dlrm.train.products import products
    tables, layers = len(case.vocab_sizes), (tuple(case.bottom_mlp), tuple(case.top_mlp))
    return case.batch * products(case.num_dense, tables, *layers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table for each case and writes a picture; returns the exit code."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=sorted(CASES), action="append", help="default: all, one after another")
    add("--batch", type=int, action="append", help="samples of a step (default: 2048 and 8192)")
    add("--peers", nargs="+", choices=PEERS, default=PEERS, help="default: all")
    add("--python", type=Path, default=PEER_PYTHON, help="the peers' interpreter")
    add("--rounds", type=int, default=7, help="turns of each system (default: 7)")
    add("--steps", type=int, default=20, help="steps of a turn (default: 20)")
    add("--plot", type=Path, default=Path("peers.png"), help="picture (default: %(default)s)")
    options = parser.parse_args(arguments)
    results = []
    for shape, batch in itertools.product(options.shape or CASES, options.batch or BATCHES):
        print(f"{CASES[shape].title}, batch {batch:,}, float32", flush=True)
        results.append(measure(prepare(shape, batch), options))
        if results[-1].peers:
            print(*results[-1].lines(), sep="\n", flush=True)
    if not any(result.peers for result in results):
        raise ValueError("expected a peer to compare with, found none; run `make bench-peers`")
    plot_peers(str(options.plot), [result for result in results if result.peers])
    print(f"picture: {options.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
