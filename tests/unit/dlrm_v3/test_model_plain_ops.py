"""What the plain operations owe by themselves: memory, dropout, equality with the fused ones."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow as tf

from dlrm_v3 import hstu_op
from dlrm_v3.model import plain_ops
from tests.support.processes import run

LAYOUT = {"heads": 2, "attention_dim": 5, "value_dim": 7, "scale": 0.1, "epsilon": 1e-6}
HISTORIES, TARGETS = [70, 0, 1, 130], [3, 1, 0, 65]

# Prints by how many MiB the process grows for attention and gradient over one long sequence.
MEMORY = """
import resource, sys
import tensorflow as tf
from dlrm_v3.model import plain_ops

@tf.function(reduce_retracing=True)
def attend(length):
    x = tf.random.normal([length, 2 * 16])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = plain_ops.gated_attention(x, tf.ones(8), tf.ones(8), tf.stack([0, length]),
            tf.constant([0]), heads=1, attention_dim=8, value_dim=8, scale=1.0, groups=1,
            epsilon=1e-6)
    return tape.gradient(y, x)

attend(tf.constant(128))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend(tf.constant(int(sys.argv[1])))
print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.fixture(scope="module")
def fused() -> hstu_op.HstuOps:
    ended = run(["make", "--directory=dlrm_v3/hstu_op"], time_limit=900)
    assert ended.code == 0, ended.output[-3000:]
    return hstu_op.load()


def grown(length: int) -> int:
    ended = run([sys.executable, "-c", MEMORY, str(length)], time_limit=300)
    assert ended.code == 0, ended.output[-3000:]
    return int(ended.output.split("grown")[-1])


def test_memory_does_not_grow_with_the_square_of_the_length() -> None:
    length = 8192
    of_weights = length**2 * 4 >> 20  # MiB of one head's, of which a gradient needs several at once
    assert of_weights == 256
    assert grown(length) < of_weights


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate) -> None:
    generator = np.random.default_rng(3)
    keys = tf.constant(generator.integers(-(2**63), 2**63, 4000))
    ones = tf.ones([4000, 50])
    found = plain_ops.dropout(ones, keys, rate=rate).numpy()
    assert set(np.unique(found)) == {np.float32(0), np.float32(1) * np.float32(1 / (1 - rate))}
    kept = found > 0
    deviation = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation
    # Neither rows nor columns nor neighbours go together.
    for means, count in ((kept.mean(0), 4000), (kept.mean(1), 50)):
        expected = rate * (1 - rate) / count
        assert means.var() == pytest.approx(expected, rel=0.6)
    both = (kept[:, 1:] & kept[:, :-1]).mean()
    assert both == pytest.approx((1 - rate) ** 2, abs=0.01)


def random_rows(generator, rows, width):
    return tf.constant(generator.normal(size=(rows, width)), tf.float32)


def test_plain_equals_fused(fused) -> None:
    generator = np.random.default_rng(4)
    values, keys = 2 * 7, 2 * 5
    rows = sum(HISTORIES) + sum(TARGETS) + 3  # three of padding
    offsets = np.append(0, np.cumsum(np.add(HISTORIES, TARGETS))).astype(np.int32)
    gamma, beta = (random_rows(generator, 1, values)[0] for _ in range(2))
    projected = random_rows(generator, rows, 2 * (values + keys))
    upstream = random_rows(generator, rows, 3 * values)
    row_keys = tf.constant(generator.integers(-(2**63), 2**63, rows))
    targets = tf.constant(TARGETS, tf.int32)

    def results(ops):
        for groups in (1, 2):
            with tf.GradientTape() as tape:
                tape.watch((projected, gamma, beta))
                attended = ops.gated_attention(
                    projected, gamma, beta, offsets, targets, groups=groups, **LAYOUT
                )
            yield attended
            yield from tape.gradient(attended, (projected, gamma, beta), upstream)
        for swish in (False, True):
            with tf.GradientTape() as tape:
                tape.watch((projected, gamma, beta))
                x = projected[:, :values]
                normal = ops.layer_norm(x, gamma, beta, epsilon=1e-5, swish=swish)
            yield normal
            yield from tape.gradient(normal, (projected, gamma, beta), upstream[:, :values])
        yield ops.dropout(projected, row_keys, rate=0.2)
        yield ops.target_attention(
            projected[: sum(TARGETS)],
            projected[:, values : values + values + keys],
            *(gamma, beta, np.append(0, np.cumsum(HISTORIES)).astype(np.int32)),
            np.append(0, np.cumsum(TARGETS)).astype(np.int32),
            groups=1,
            **LAYOUT,
        )

    for number, (plain, other) in enumerate(zip(results(plain_ops.load()), results(fused))):
        largest = np.abs(other.numpy()).max()
        np.testing.assert_allclose(
            plain.numpy(), other.numpy(), rtol=0, atol=1e-5 * largest, err_msg=str(number)
        )
    for rate in (0.1, 0.2, 0.5):
        np.testing.assert_array_equal(
            plain_ops.dropout(projected, row_keys, rate=rate).numpy(),
            fused.dropout(projected, row_keys, rate=rate).numpy(),
        )
