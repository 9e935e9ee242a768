"""What tests of checkpoints share: whole checkpoints, tables in memory, and a command's memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm.checkpoint.manifest import (
    DENSE_FILE,
    ROWS,
    Manifest,
    ModelShape,
    Position,
    tables_file,
)
from dlrm.checkpoint.safetensors_file import write_tensors
from tests.support.artifacts import cross_weights, interaction_columns
from tests.support.processes import run


class ArrayTables:
    """The rows of all keys in memory, as the only rank."""

    state = ()  # plain SGD remembers nothing
    dynamic = None

    def __init__(self, rows: NDArray[Any]) -> None:
        self.rows = rows

    def read_rows(self, first: int, last: int) -> NDArray[Any]:
        """Returns rows [last - first, width]."""
        return self.rows[first:last]

    def write_rows(self, rows: NDArray[Any], values: NDArray[Any]) -> None:
        """Overwrites the rows that `rows` names."""
        self.rows[rows] = values


def random_weights(model: ModelShape, seed: int) -> dict[str, NDArray[Any]]:
    """Random weights of all layers by name, the same for the same seed."""
    assert model.num_dense
    assert model.bottom_mlp
    assert model.top_mlp
    dice = np.random.default_rng([seed, 1])
    interaction = interaction_columns(
        model.interaction, model.embedding_dim, len(model.vocab_sizes)
    )
    weights = cross_weights(dice, interaction, model.cross_layers, model.cross_rank)
    for mlp, sizes in (
        ("bottom", (model.num_dense, *model.bottom_mlp)),
        ("top", (interaction, *model.top_mlp)),
    ):
        for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
            kernel = dice.normal(size=(inputs, outputs)) * (2 / (inputs + outputs)) ** 0.5
            weights[f"{mlp}_kernel_{layer}"] = kernel.astype("<f4")
            weights[f"{mlp}_bias_{layer}"] = (dice.normal(size=outputs) * 0.1).astype("<f4")
    return weights


def write_checkpoint(
    folder: Path,
    model: ModelShape,
    rows: NDArray[np.float32],
    dense: Mapping[str, NDArray[Any]],
    *,
    ranks: int = 1,
    step: int = 12,
    settings: Mapping[str, Any] | None = None,
    data: Mapping[str, str] | None = None,
    state: Mapping[str, NDArray[np.float32]] | None = None,
) -> Path:
    """Writes a checkpoint as a run of several ranks leaves it.

    Args:
        folder: The folder to make.
        model: The shape of the model.
        rows: The rows of all keys, float32 [K, width].
        dense: The dense weights by name; none for a checkpoint of tables alone.
        ranks: Number of ranks.
        step: Number of steps done.
        settings: The flags of the run.
        data: The fingerprints of the data.
        state: Columns of the optimizer behind each row, float32 [K, columns], by name.
    """
    folder.mkdir(parents=True)
    files = {DENSE_FILE: write_tensors(folder / DENSE_FILE, dense)} if dense else {}
    for rank in range(ranks):
        tensors = {ROWS: rows, **(state or {})}
        own = {name: values[rank::ranks] for name, values in tensors.items()}
        name = tables_file(rank, ranks)
        files[name] = write_tensors(folder / name, own)
    Manifest(Position(step, 1, 64), model, settings or {}, data or {}, ranks, files).write(folder)
    return folder


class DynamicRow(NamedTuple):
    """What a checkpoint of dynamic tables knows of an id.

    Attributes:
        row: Its row, float32 [width]; None if it waits for one.
        last: The last step whose batch held it.
    """

    row: NDArray[np.float32] | None
    last: int


def write_dynamic_checkpoint(
    folder: Path,
    model: ModelShape,
    tables: Sequence[Mapping[int, DynamicRow]],
    shared: NDArray[np.float32],
    dense: Mapping[str, NDArray[Any]],
    *,
    ranks: int = 1,
    step: int = 12,
    seed: int = 1,
    evict_after: int = 0,
) -> Path:
    """Writes a checkpoint as a run with `--embedding=dynamic` leaves it.

    Args:
        folder: The folder to make.
        model: The shape of the model.
        tables: What is known of the ids of each table.
        shared: The rows that ids without one share, float32 [T, width], or [0, width] for none.
        dense: The dense weights by name.
        ranks: Number of ranks.
        step: Number of steps done.
        seed: The seed of the run.
        evict_after: Number of steps after which an id is forgotten, 0 for none.
    """
    folder.mkdir(parents=True)
    files = {DENSE_FILE: write_tensors(folder / DENSE_FILE, dense)}
    known = {
        sum(model.vocab_sizes[:table]) + number: entry
        for table, ids in enumerate(tables)
        for number, entry in ids.items()
    }
    for rank in range(ranks):
        own = [key for key in known if key % ranks == rank]
        own.sort(key=lambda key: (known[key].row is None, key))
        rows = [row for key in own if (row := known[key].row) is not None]
        tensors = {
            "keys": np.array(own, np.int64),
            "counts": np.array([(3, known[key].last) for key in own], "<i4").reshape(-1, 2),
            "shared": shared,
            ROWS: np.array(rows, "<f4").reshape(-1, model.embedding_dim),
            "adagrad.sum": np.ones((len(rows), model.embedding_dim), "<f4"),
        }
        files[tables_file(rank, ranks)] = write_tensors(folder / tables_file(rank, ranks), tensors)
    settings = {"embedding": "dynamic", "seed": seed, "evict_after": evict_after}
    Manifest(Position(step, 1, 64), model, settings, {}, ranks, files).write(folder)
    return folder


def peak_megabytes(*words: str | Path, command: str = "dlrm.checkpoint") -> int:
    """Runs a command of a package, which must succeed; returns the most memory it held."""
    # The kernel's own mark: getrusage's is at least that of the process that started this one.
    code = (
        f"import sys; from {command}.__main__ import main; code = main(sys.argv[1:]); "
        "print(open('/proc/self/status').read()); sys.exit(code)"
    )
    env = {"POLARS_MAX_THREADS": "4"}  # each holds a little
    ended = run([sys.executable, "-c", code, *words], time_limit=120, env=env)
    assert ended.code == 0, ended.output
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", ended.output)
    peak = int(kilobytes) >> 10
    print(f"{words[0]}: {peak} MB, {ended.seconds:.1f} s")
    return peak
