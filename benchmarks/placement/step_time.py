"""What a step takes at least, by the work and the bytes of its parts and published rates.

Each part is work divided by the greatest rate that the maker publishes, on the most loaded rank,
and no part overlaps with another. What a measured step takes beyond that, the launches of hundreds
of small operations above all, is the *rest*: it is known where somebody has measured, and assumed
to stay the same elsewhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.placement.counting import Exchange, of_others
from benchmarks.placement.placements import BY_MODULO, WHOLE_TABLES
from dlrm.train.products import products

NUM_DENSE = 13
BOTTOM, TOP = (512, 256, 128), (1024, 1024, 512, 256, 1)
INTERACTION = 480  # values that the top MLP takes
WIDTH = BOTTOM[-1]
DENSE_VALUES = sum(
    (inputs + 1) * outputs
    for units in ((NUM_DENSE, *BOTTOM), (INTERACTION, *TOP))
    for inputs, outputs in zip(units, units[1:])
)
KEY_BYTES = 4
BYTES_OF = {"float32": 4, "float16": 2}
# How often a layer's output, and then its gradient, goes to memory or comes from it: written by
# the layer, read by the next, read again by its backward pass; and the same of the gradient.
PASSES = 6


@dataclass(frozen=True)
class Accelerator:
    """The published rates of a GPU in its usual server, each way, per second.

    Attributes:
        name: Its name.
        operations: Floating-point operations of products, by type.
        memory: Bytes of its memory.
        link: Bytes to the other GPUs of the server together.
        network: Bytes to other servers.
        node: GPUs in a server.
        message: Seconds for each message to another GPU; an assumption, nobody publishes it.
    """

    name: str
    operations: dict[str, float]
    memory: float
    link: float
    network: float
    node: int = 8
    message: float = 1e-6


# float32 products of an A100 are TF32's. DGX A100: a 200 Gbit/s adapter for each GPU; DGX-1: four
# of 100 Gbit/s for eight.
A100 = Accelerator("A100", {"float32": 156e12, "float16": 312e12}, 1555e9, 300e9, 25e9)
V100 = Accelerator("V100", {"float32": 15.7e12, "float16": 125e12}, 900e9, 150e9, 6.25e9)


@dataclass(frozen=True)
class Published:
    """A published step on eight GPUs.

    Attributes:
        source: Who published it.
        gpu: The GPU.
        placement: How rows or tables are placed.
        dtype: The type of products and exchanges.
        compress: Whether only distinct keys were sent.
        milliseconds: Time of a step of 65,536 samples.
    """

    source: str
    gpu: Accelerator
    placement: str
    dtype: str
    compress: bool
    milliseconds: float


_SOK, _EXAMPLES = "SOK benchmark", "DeepLearningExamples"
PUBLISHED = (
    Published(_SOK, A100, BY_MODULO, "float32", True, 5.55),
    Published(_SOK, A100, BY_MODULO, "float16", False, 4.74),
    Published(_EXAMPLES, A100, WHOLE_TABLES, "float32", False, 65536 / 9_056_775 * 1e3),
    Published(_EXAMPLES, A100, WHOLE_TABLES, "float16", False, 65536 / 14_230_793 * 1e3),
    Published(_SOK, V100, BY_MODULO, "float32", True, 16.42),
    Published(_SOK, V100, BY_MODULO, "float16", False, 9.56),
)


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of a step's parts on the most loaded rank.

    Attributes:
        products: Matrix products, forward and backward.
        memory: Rows, vectors, activations and their gradients, read and written.
        exchange: Keys, vectors and gradients between ranks.
        all_reduce: Gradients of the dense weights.
    """

    products: float
    memory: float
    exchange: float
    all_reduce: float

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.products + self.memory + self.exchange + self.all_reduce


def step_time(gpu: Accelerator, dtype: str, exchange: Exchange, samples: int) -> StepTime:
    """The parts of one step.

    Args:
        gpu: What the ranks compute on.
        dtype: The type of products and exchanges.
        exchange: What is exchanged.
        samples: Samples of a rank.
    """
    ranks, tables = len(exchange.keys), 26
    vector = WIDTH * BYTES_OF[dtype]
    everywhere = products(NUM_DENSE, tables, BOTTOM, TOP) * samples
    # Where one rank computes the bottom MLP of all samples, the others do not.
    bottom = _bottom_products() * samples
    at_one = everywhere + bottom * (ranks - 1) if exchange.bottom.any() else everywhere

    passed = sum(BOTTOM) + INTERACTION + sum(TOP)
    activations = PASSES * passed * samples * BYTES_OF[dtype]
    # An owner reads rows, lays a vector out for each key, takes in a gradient for each, and reads
    # and writes the rows; a requester takes in vectors and lays them out by sample, and back.
    of_owner = 3 * exchange.rows * WIDTH * 4 + 4 * exchange.received * vector
    of_requester = 2 * (exchange.keys.sum(axis=1) + samples * tables) * vector
    moved = activations + (of_owner + of_requester).max()

    weights = DENSE_VALUES * 4
    busiest = gpu.link if ranks <= gpu.node else gpu.network * gpu.node
    return StepTime(
        1e3 * at_one / gpu.operations[dtype],
        1e3 * float(moved) / gpu.memory,
        1e3 * exchange_seconds(gpu, exchange, vector),
        1e3 * 2 * weights * (ranks - 1) / ranks / busiest,  # in a ring
    )


def exchange_seconds(gpu: Accelerator, exchange: Exchange, vector_bytes: int) -> float:
    """Seconds of the three exchanges of a step, each as long as its most loaded link needs."""
    carried = exchange.keys + exchange.bottom
    phases = (exchange.keys * KEY_BYTES, carried.T * vector_bytes, carried * vector_bytes)
    return sum(_phase_seconds(gpu, of_others(phase)) for phase in phases)


def _phase_seconds(gpu: Accelerator, sent: NDArray[np.int64]) -> float:
    """Seconds of one exchange of the given bytes [N, N] from rank to rank."""
    node = np.arange(len(sent)) // gpu.node
    near = node[:, None] == node
    seconds = 0.0
    for bytes_, rate in ((sent * near, gpu.link), (sent * ~near, gpu.network)):
        seconds = max(seconds, bytes_.sum(axis=0).max() / rate, bytes_.sum(axis=1).max() / rate)
    return float(seconds) + gpu.message * (len(sent) - 1)


def _bottom_products() -> int:
    """Operations of the bottom MLP for a sample; its first layer's input needs no gradient."""
    units = (NUM_DENSE, *BOTTOM)
    pairs = [a * b for a, b in zip(units, units[1:])]
    return 2 * (3 * sum(pairs) - pairs[0])


def rests(exchanges: Mapping[tuple[str, bool], Exchange], samples: int) -> list[float]:
    """The milliseconds of each published step that are in none of its parts.

    Args:
        exchanges: The exchange on eight ranks, by placement and `--compress`.
        samples: Samples of a rank.
    """
    return [
        found.milliseconds - of_published(found, exchanges, samples).total for found in PUBLISHED
    ]


def of_published(
    found: Published, exchanges: Mapping[tuple[str, bool], Exchange], samples: int
) -> StepTime:
    """The parts of a published step."""
    exchange = exchanges[found.placement, found.compress]
    return step_time(found.gpu, found.dtype, exchange, samples)


def mean_rest(exchanges: Mapping[tuple[str, bool], Exchange], samples: int) -> float:
    """The mean rest of the published steps on A100, in milliseconds."""
    pairs = zip(PUBLISHED, rests(exchanges, samples))
    return statistics.mean(rest for found, rest in pairs if found.gpu is A100)
