"""What a step asks of a GPU: operations, clusters and bytes of small graphs counted by hand."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, Callable

import pytest
import tensorflow as tf

from benchmarks.placement.step_time import A100
from benchmarks.step_count import PARTS, PartCount, bounds, count_step

ROWS, WIDTH, UNKNOWN = 6, 4, 10


def counted(graph: Callable[..., Any], *inputs: tf.TensorSpec) -> tuple[dict[str, PartCount], Any]:
    function = tf.function(graph, input_signature=inputs, autograph=False)
    step = SimpleNamespace(_compiled_train=function.get_concrete_function())
    return count_step(step, UNKNOWN, WIDTH)


def test_launches_and_bytes_belong_to_their_part() -> None:
    def graph(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.name_scope("lookup"):
            total = x + x
        with tf.name_scope("update"):
            return tf.matmul(tf.reshape(total, [ROWS, WIDTH]), y)

    found, types = counted(
        graph, tf.TensorSpec([None, WIDTH], tf.float32), tf.TensorSpec([WIDTH, 2], tf.float32)
    )
    assert found["lookup"] == PartCount(launches=1, bytes=3 * UNKNOWN * WIDTH * 4)
    product = 4 * (ROWS * WIDTH + WIDTH * 2 + ROWS * 2)
    assert found["update"] == PartCount(launches=1, bytes=product)
    assert {name for name, count in found.items() if count != PartCount()} == {"lookup", "update"}
    assert types == Counter(AddV2=1, MatMul=1)


def test_a_tensor_of_unknown_size_has_one_vector_for_each_key() -> None:
    found, _ = counted(lambda x: -x, tf.TensorSpec([None, 3, WIDTH], tf.float32))
    assert found["other"].bytes == 2 * UNKNOWN * WIDTH * 4


def test_what_xla_compiles_is_one_cluster() -> None:
    @tf.function(jit_compile=True, autograph=False)
    def compiled(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(x * x) + x

    def graph(x: tf.Tensor) -> tf.Tensor:
        with tf.name_scope("gradients"):
            return tf.negative(compiled(x))

    found, _ = counted(graph, tf.TensorSpec([ROWS], tf.float32))
    assert (found["gradients"].launches, found["gradients"].clusters) == (1, 1)
    assert found["gradients"].inside == 3


def test_integers_of_32_bits_stay_on_the_host() -> None:
    """TensorFlow's int32 kernels for GPUs take their tensors from the host's memory."""
    found, _ = counted(lambda x: x + x, tf.TensorSpec([None], tf.int32))
    assert sum(found[part].on_host for part in PARTS) == 1
    found, _ = counted(lambda x: x + x, tf.TensorSpec([None], tf.int64))
    assert sum(found[part].on_host for part in PARTS) == 0


def test_bounds_are_work_divided_by_published_rates() -> None:
    products, memory, exchange = bounds(A100, "float32", 1000, 4, moved=int(A100.memory))
    assert memory == pytest.approx(1000)
    assert exchange == pytest.approx(1e3 * 1000 * 26 * (4 + 8 * 128) * 3 / 4 / A100.link)
    half = bounds(A100, "float16", 1000, 4, moved=0)
    assert half[0] == pytest.approx(products / 2)
    assert bounds(A100, "float32", 1000, 1, moved=0)[2] == 0
