"""Counts what a training step asks of a GPU: launches, bytes and operations. It needs no GPU.

    python3 -m benchmarks.step_count [--batch N] [--gpus N]

The step's own graph is traced as for a GPU, for each choice of switches, on one rank and as one of
several; nothing is computed. Each operation that has a kernel for GPUs is at least one launch, but
a part that XLA compiles is one cluster, which XLA cuts into kernels of its own. The bytes are those
of the inputs and outputs of every launched operation, with every key taken as distinct; inside a
cluster they are an upper bound, as XLA keeps values in registers. Rates are the makers', published;
times are bounds computed from them, not measurements.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import ranks
from dlrm import cli

with cli.project_environment():
    from benchmarks.placement.step_time import A100, KEY_BYTES, Accelerator
    from benchmarks.shapes import NUM_DENSE, SHAPES
    from dlrm.layers.interaction_shape import DOT, INTERACTIONS

SHAPE = "mlperf_mlps"
TABLES = 26
H100 = Accelerator("H100", {"float32": 494.7e12, "float16": 989.4e12}, 3350e9, 450e9, 50e9)
SWITCHES: tuple[dict[str, bool], ...] = (
    {},
    {"compress": True},
    {"custom_interact": True},
    {"amp": True},
    {"xla": True},
    {"compress": True, "custom_interact": True},
    {"compress": True, "custom_interact": True, "amp": True},
    {"compress": True, "custom_interact": True, "amp": True, "xla": True},
)
PARTS = ("route", "lookup", "gradients", "all_reduce", "update", "other")
# Operations that only name, shape or pass on what is there, or run on the host by their nature.
NO_LAUNCH = {
    *("Const", "Placeholder", "NoOp", "Identity", "IdentityN", "ReadVariableOp", "Assert"),
    *("VarHandleOp", "Reshape", "ExpandDims", "Squeeze", "Shape", "Size", "Rank", "StopGradient"),
    *("PreventGradient", "BroadcastGradientArgs", "StridedSlice"),
}
CALLS = {"PartitionedCall", "StatefulPartitionedCall"}


class PartCount(NamedTuple):
    """What one part of a step asks for.

    Attributes:
        launches: Operations with a kernel for GPUs, outside XLA's clusters.
        clusters: Functions that XLA compiles.
        inside: Operations with a kernel for GPUs in these.
        on_host: Operations on tensors of a batch's length without such a kernel, or whose kernel
            takes them from the host's memory; copies there and back come with them.
        bytes: Bytes of the inputs and outputs of launched operations and those in clusters.
    """

    launches: int = 0
    clusters: int = 0
    inside: int = 0
    on_host: int = 0
    bytes: int = 0

    def plus(self, other: PartCount) -> PartCount:
        """Returns the sum of both."""
        return PartCount(*(a + b for a, b in zip(self, other)))


def choices_of(interaction: str) -> list[dict[str, bool]]:
    """The choices of switches that a model of an interaction may have."""
    return [
        switches
        for switches in SWITCHES
        if interaction == DOT or not switches.get("custom_interact")
    ]


def name_of(switches: dict[str, bool]) -> str:
    """Returns the switches as a command has them."""
    return " ".join(f"--{name}" for name in switches) or "none"


def count_step(step: Any, unknown: int, width: int) -> tuple[dict[str, PartCount], Counter[str]]:
    """Counts the operations of a step's graph.

    Args:
        step: A `TrainingStep`.
        unknown: What a dimension of unknown size is taken as: the number of keys.
        width: Values of a vector; a tensor of unknown size has one vector for each key at most.

    Returns:
        The counts of each part, and the number of launches by type of operation.
    """
    found = {part: PartCount() for part in PARTS}
    types: Counter[str] = Counter()
    graph = step._compiled_train.graph  # noqa: SLF001
    _count(graph, graph, "", False, (unknown, width), found, types)
    return found, types


def _count(
    graph: Any,
    outer: Any,
    part: str,
    compiled: bool,
    keys: tuple[int, int],
    found: dict[str, PartCount],
    types: Counter[str],
) -> None:
    """Adds the operations of a graph, and of the functions that it calls, to `found`."""
    for operation in graph.get_operations():
        name = part or operation.name.partition("/")[0]
        name = name if name in found else "other"
        if operation.type in CALLS:
            function = outer._get_function(operation.get_attr("f").name)  # noqa: SLF001
            inner = getattr(function, "graph", None) or function.cached_definition
            xla = _compiled_by_xla(operation, function)
            found[name] = found[name].plus(PartCount(clusters=int(xla and not compiled)))
            _count(inner, outer, name, compiled or xla, keys, found, types)
            continue
        if operation.type in NO_LAUNCH:
            continue
        size = sum(_bytes(tensor, *keys) for tensor in (*operation.inputs, *operation.outputs))
        if not compiled and not _on_gpu(operation):
            found[name] = found[name].plus(PartCount(on_host=int(size > keys[0])))
            continue
        found[name] = found[name].plus(
            PartCount(launches=int(not compiled), inside=int(compiled), bytes=size)
        )
        types[operation.type] += not compiled


def _compiled_by_xla(operation: Any, function: Any) -> bool:
    for holder in (operation, function):
        try:
            if holder.get_attr("_XlaMustCompile"):
                return True
        except (ValueError, AttributeError):
            continue
    attributes = getattr(function, "definition", None) or function.function_def
    return bool(attributes.attr["_XlaMustCompile"].b)


def _bytes(tensor: Any, unknown: int, width: int) -> int:
    """Bytes of a tensor; handles of variables have none."""
    if tensor.dtype.name in ("resource", "variant", "string"):
        return 0
    if tensor.shape.rank is None:
        return unknown * tensor.dtype.size
    values = 1
    for dimension in tensor.shape:
        values *= unknown if dimension is None else dimension
    if None in tensor.shape:
        values = min(values, unknown * width)
    return int(values * tensor.dtype.size)


def _on_gpu(operation: Any) -> bool:
    """Whether an operation has a kernel that computes on a GPU, for its types."""
    from tensorflow.python.framework import kernels

    if operation.type.startswith(("Horovod", "DotInteract")):
        return True  # built for GPUs where there are some
    for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel:
        if kernel.device_type != "GPU":
            continue
        fits = all(
            operation.node_def.attr[constraint.name].type
            in (0, *constraint.allowed_values.list.type)
            for constraint in kernel.constraint
        )
        outputs = {argument.name for argument in operation.op_def.output_arg}
        if fits and not outputs & set(kernel.host_memory_arg):
            return True
    return False


def work(batch: int, interaction: str) -> None:
    """Traces the step for each choice of switches; rank 0 reports the counts."""
    from dlrm import embedding
    from dlrm.distributed import devices, host_collective
    from dlrm.embedding import partition
    from dlrm.train.build import build_trainer, join
    from model import build_model

    partition.on_gpu = lambda: True  # a step is traced as for a GPU
    devices.lanes = lambda: 1
    os.environ[host_collective.EXCHANGE_VARIABLE] = "horovod"
    # A graph is the same however many rows there are.
    shape = dataclasses.replace(SHAPES[SHAPE], vocab_sizes=(1000,) * TABLES)
    collective, reports = None, []
    for switches in choices_of(interaction):
        config = shape.config(batch, interaction=interaction, **switches)
        collective = collective or join(config)
        backend, _ = embedding.choose(config.embedding.embedding)
        data = shape.data(batch, 2, collective.rank, collective.size)
        trainer = build_trainer(config, backend, collective, data, build_model)
        keys = batch // collective.size * TABLES
        found, types = count_step(trainer.step, keys, config.model.embedding_dim)
        reports.append([found, types.most_common()])
    if collective and collective.rank == 0:
        ranks.report(reports)


def bounds(
    gpu: Accelerator, dtype: str, samples: int, gpus: int, moved: int, interaction: str = DOT
) -> tuple[float, float, float]:
    """Milliseconds that products, memory and exchanges take at published rates, without overlap.

    Args:
        gpu: The GPU.
        dtype: The type of products and exchanges.
        samples: Samples of a GPU.
        gpus: Number of GPUs in one server.
        moved: Bytes that the operations of a step read and write.
        interaction: The kind of the model's interaction.
    """
    from dlrm.train.products import products

    model = SHAPES[SHAPE].config(samples, interaction=interaction).model
    shape = model.interaction_shape
    operations = samples * products(NUM_DENSE, TABLES, model.bottom_mlp, model.top_mlp, shape)
    vector = model.embedding_dim * (4 if dtype == "float32" else 2)
    sent = samples * TABLES * (KEY_BYTES + 2 * vector) * (gpus - 1) / gpus
    return (
        1e3 * operations / gpu.operations[dtype],
        1e3 * moved / gpu.memory,
        1e3 * sent / gpu.link,
    )


def lines_of(reports: Sequence[Any], samples: int, gpus: int, interaction: str) -> list[str]:
    """Returns a table in Markdown: a line for each choice of switches."""
    lines = [
        "| switches | launches: " + ", ".join(PARTS) + " | clusters (operations in them)"
        " | on the host | GB | bound on A100, ms: products + memory + exchange | on H100 |",
        "|---|---|---|---|---|---|---|",
    ]
    for switches, (parts, _) in zip(choices_of(interaction), reports):
        counts = {name: PartCount(*count) for name, count in parts.items()}
        total = PartCount()
        for count in counts.values():
            total = total.plus(count)
        dtype = "float16" if switches.get("amp") else "float32"
        times = [
            bounds(gpu, dtype, samples, gpus, total.bytes, interaction) for gpu in (A100, H100)
        ]
        cells = [" + ".join(f"{part:.2f}" for part in time) for time in times]
        each = ", ".join(str(counts[name].launches) for name in PARTS)
        lines.append(
            f"| {name_of(switches)} | {total.launches}: {each} | {total.clusters} ({total.inside})"
            f" | {total.on_host} | {total.bytes / 1e9:.2f} | {cells[0]} | {cells[1]} |"
        )
    return lines


def main() -> int:
    """Prints a table for one GPU and one for each of several; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=65536, help="samples of the global batch")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of the second table")
    parser.add_argument(
        "--interaction", choices=INTERACTIONS, default=DOT, help=f"of the model (default: {DOT})"
    )
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.interaction)
        return 0
    for gpus in (1, options.gpus):
        samples = options.batch // gpus
        # Two ranks stand for all: a step's graph has the same operations on any number of them.
        size = min(gpus, 2)
        arguments = ["--work", str(samples * size), "--interaction", options.interaction]
        reports = ranks.measure(size, "benchmarks.step_count", arguments)
        print(f"{gpus} GPU{'s' * (gpus > 1)}, {samples:,} samples each, counted per GPU")
        print("\n".join(lines_of(reports, samples, gpus, options.interaction)))
        choices = choices_of(options.interaction)
        for switches, (_, types) in list(zip(choices, reports))[1::3]:
            most = ", ".join(f"{kind} {count}" for kind, count in types[:14] if count)
            print(f"launches with {name_of(switches)}: {most}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
