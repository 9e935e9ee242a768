"""Ranks that save, of which one is killed: killed_saves.py FOLDER RANKS MOMENTS SEED.

A rank is killed once at each of `SAVE_POINTS`, on rank 0 and on another, and at MOMENTS random
moments. Prints one JSON object per line: what was found after each kill. The ranks are plain
processes over pipes, so that many kills cost no more than one start of a launcher.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable

import numpy as np

from dlrm.checkpoint import state as checkpoint_state
from dlrm.checkpoint.directory import LOCK_NAME, checkpoint_name
from dlrm.checkpoint.manifest import ModelShape, Position
from dlrm.checkpoint.resume import resume
from dlrm.checkpoint.save import SAVE_POINTS, Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.distributed.collective import Collective
from dlrm.distributed.sharding import local_rows
from tests.support.jobs import whole

KEYS, WIDTH = 999, 8
RUN = RunRecord(ModelShape(1, (KEYS,), WIDTH, (WIDTH,), (1,)), {}, {"training": "none"})
OLD, NEW, LATER = 1, 2, 3  # steps
LONGEST_DELAY = 0.03  # seconds; a save takes about so long
FORK = multiprocessing.get_context("fork")  # after the imports, which take seconds


class Piped(Collective):
    """Ranks that talk over pipes; one that finds another gone ends."""

    def __init__(self, rank: int, pipes: list[tuple[Connection, Connection]]) -> None:
        self.rank, self.size = rank, len(pipes) + 1
        # A pipe's end is seen only if nobody else holds it.
        for other, (hub, leaf) in enumerate(pipes, 1):
            if rank:
                hub.close()
            if rank != other:
                leaf.close()
        self._pipes = [pipes[rank - 1][1]] if rank else [hub for hub, _ in pipes]

    def gather_text(self, text: str) -> list[str]:
        try:
            if self.rank:
                self._pipes[0].send_bytes(text.encode())
                return json.loads(self._pipes[0].recv_bytes())
            texts = [text, *(pipe.recv_bytes().decode() for pipe in self._pipes)]
            for pipe in self._pipes:
                pipe.send_bytes(json.dumps(texts).encode())
        except (EOFError, OSError):
            os._exit(1)
        return texts


class Values:
    """Takes the role of a dense variable and of a rank's rows."""

    state = ()  # plain SGD remembers nothing
    dynamic = None

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def numpy(self) -> np.ndarray:
        return self.values

    def assign(self, values: np.ndarray) -> None:
        self.values = values

    def read_rows(self, first: int, last: int) -> np.ndarray:
        return self.values[first:last].copy()

    def write_rows(self, rows: np.ndarray, values: np.ndarray) -> None:
        self.values[rows] = values


def state_of(step: int, collective: Collective) -> State:
    """Every single value follows from the step, so that no mix goes unseen."""
    rows = local_rows(KEYS, collective.rank, collective.size)
    dense = np.random.default_rng(step).random(1000, np.float32)
    table = np.random.default_rng((step, collective.rank)).random((rows, WIDTH), np.float32)
    variables: dict[str, Any] = {"dense": Values(dense)}
    return State(variables, Values(table))


def save(plan: dict[str, Any], collective: Collective, begun: Any) -> None:
    """Writes an old checkpoint, then a new one in which the victim is killed."""
    victim = collective.rank == plan["victim"]

    def reached(point: str) -> None:
        if victim and begun.is_set() and point == plan.get("point"):
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = Checkpoints(Path(plan["folder"]), collective, RUN, keep=1, on_save_point=reached)
    checkpoints.save(state_of(OLD, collective), Position(OLD, 0, OLD))
    collective.gather_text("")
    begun.set()
    checkpoints.save(state_of(NEW, collective), Position(NEW, 0, NEW))


def go_on(plan: dict[str, Any], collective: Collective, _: Any) -> None:
    """Loads the checkpoint, which must hold the old or the new state, and saves a later one."""
    directory = Path(plan["folder"])
    state = state_of(LATER, collective)
    resumed = resume("auto", directory, RUN, state, collective)
    assert resumed is not None, "no checkpoint is left"
    expected = state_of(resumed.position.step, collective)
    assert same_state(state, expected), f"a mix in {resumed.path}"
    checkpoints = Checkpoints(directory, collective, RUN, keep=1)
    checkpoints.save(state_of(LATER, collective), Position(LATER, 0, LATER))


def same_state(one: Any, other: Any) -> bool:
    pairs = (one.dense["dense"], other.dense["dense"]), (one.tables, other.tables)
    return all(np.array_equal(a.values, b.values) for a, b in pairs)


def on_ranks(plan: dict[str, Any], action: Callable[..., None]) -> list[int]:
    """Runs the action on each rank and gives the exit codes; kills the victim if its time comes."""
    begun = FORK.Event()
    pipes = [FORK.Pipe() for _ in range(plan["ranks"] - 1)]

    def rank_main(rank: int) -> None:
        action(plan, Piped(rank, pipes), begun)

    ranks = [FORK.Process(target=rank_main, args=(rank,)) for rank in range(plan["ranks"])]
    for process in ranks:
        process.start()
    for pipe in [end for pair in pipes for end in pair]:
        pipe.close()
    if action is save and "delay" in plan:
        begun.wait()
        time.sleep(plan["delay"])
        ranks[plan["victim"]].kill()
    for process in ranks:
        process.join()
    return [process.exitcode or 0 for process in ranks]


def attempt(plan: dict[str, Any]) -> dict[str, Any]:
    """What a kill left, or what is wrong with it."""
    directory = Path(plan["folder"])
    codes = on_ranks(plan, save)
    try:
        left = whole(directory)
    except ValueError as error:
        return {"problem": f"it left what is not whole: {error}"}
    if not left or not set(left) <= {OLD, NEW}:
        return {"problem": f"expected the checkpoint of step {OLD} or {NEW}, found {left}"}
    leftovers = sorted(path.name for path in directory.glob(".*-*"))
    if any(on_ranks(plan, go_on)):
        return {"problem": f"the next run fails where {left} and {leftovers} were left"}
    found = sorted(path.name for path in directory.iterdir())
    if found != [LOCK_NAME, checkpoint_name(LATER)]:
        return {"problem": f"the next run left {found}"}
    return {
        "killed": codes[plan["victim"]] == -signal.SIGKILL,
        "newest": "new" if NEW in left else "old",
        "leftovers": leftovers,
    }


def plans(ranks: int, moments: int, generator: random.Random) -> list[dict[str, Any]]:
    """Who is killed, and at which point or how many seconds after the second save began."""
    found: list[dict[str, Any]] = [
        {"victim": rank, "point": point}
        for rank in range(min(ranks, 2))  # all but rank 0 do the same
        for point in SAVE_POINTS
        if rank == 0 or point not in ("manifest", "renamed")  # which only rank 0 comes by
    ]
    return found + [
        {"victim": generator.randrange(ranks), "delay": generator.uniform(0, LONGEST_DELAY)}
        for _ in range(moments)
    ]


def main(folder: str, ranks: str, moments: str, seed: str) -> None:
    """Prints what each plan found."""
    checkpoint_state.PIECE_BYTES = 1000  # several pieces of a small table
    for number, plan in enumerate(plans(int(ranks), int(moments), random.Random(seed))):
        plan.update(ranks=int(ranks), folder=os.path.join(folder, str(number)))
        print(json.dumps({**plan, **attempt(plan)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
