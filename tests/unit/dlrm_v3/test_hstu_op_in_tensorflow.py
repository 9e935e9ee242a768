"""HSTU's fused operations by way of TensorFlow: gradients, static shapes and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from dlrm_v3 import hstu_op
from tests.support import hstu_ops as reference
from tests.support.hstu_ops import Settings
from tests.unit.dlrm_v3.test_hstu_op import (
    BOUNDS,
    SEED,
    _built,
    assert_attention_close,
    assert_close,
    case,
    expected_of_targets,
    norm_case,
    targets_alone,
)

__all__ = ["_built"]
SETTINGS = Settings(2, 32, 16, 1 / 50, 1, 1e-3)
REQUESTS = ([65, 0, 129, 7], [1, 0, 20, 7])


def tensors(*arrays: Any) -> list[tf.Tensor]:
    return [tf.constant(array) for array in arrays]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_gated_attention(dtype: str, compiled: bool) -> None:
    given = case(SETTINGS, REQUESTS, dtype)
    ops = hstu_op.load()

    def forward_and_back(projected: Any, gamma: Any, beta: Any, upstream: Any) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([projected, gamma, beta])
            output = ops.gated_attention(
                projected, gamma, beta, given.offsets, given.targets, **SETTINGS._asdict()
            )
        gradients = tape.gradient(output, [projected, gamma, beta], output_gradients=upstream)
        return [output, *gradients]

    function = tf.function(forward_and_back) if compiled else forward_and_back
    inputs = tensors(given.projected, given.gamma, given.beta, given.upstream)
    found = [tensor.numpy() for tensor in function(*inputs)]
    assert_attention_close(found, given.expected(), given)
    again = [tensor.numpy() for tensor in function(*inputs)]
    for one, other in zip(found, again):
        np.testing.assert_array_equal(one, other)


def test_weights_of_another_type_get_gradients_of_theirs() -> None:
    given = case(SETTINGS, REQUESTS, "bfloat16")
    ops = hstu_op.load()
    projected, gamma, beta = tensors(given.projected, given.gamma, given.beta)
    gamma, beta = tf.cast(gamma, tf.bfloat16), tf.cast(beta, tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch([gamma, beta])
        output = ops.gated_attention(
            projected, gamma, beta, given.offsets, given.targets, **SETTINGS._asdict()
        )
        output = ops.layer_norm(output[:, : SETTINGS.width], gamma, beta, epsilon=1e-6, swish=True)
    assert {g.dtype for g in tape.gradient(output, [gamma, beta])} == {tf.bfloat16}


@pytest.mark.parametrize("dtype", BOUNDS)
def test_target_attention(dtype: str) -> None:
    given = case(SETTINGS, REQUESTS, dtype)
    own, history, history_offsets = targets_alone(given)
    inputs = tensors(own.projected, history, own.gamma, own.beta)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = hstu_op.load().target_attention(
            *inputs, history_offsets, own.offsets, **SETTINGS._asdict()
        )
    gradients = tape.gradient(output, inputs, output_gradients=tf.constant(own.upstream))
    for found, expected in zip([output, *gradients], expected_of_targets(given)):
        assert_close(found.numpy()[: len(expected)], expected, dtype)


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_layer_norm(dtype: str, swish: bool) -> None:
    given = norm_case(100, 48, dtype)
    inputs = tensors(given.x, given.gamma, given.beta)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = hstu_op.load().layer_norm(*inputs, epsilon=1e-3, swish=swish)
    gradients = tape.gradient(output, inputs, output_gradients=tf.constant(given.upstream))
    *doubles, upstream = (array.astype(np.float64) for array in given)
    settings: Any = {"epsilon": 1e-3, "swish": swish}
    expected = [
        reference.layer_norm(*doubles, **settings),
        *reference.layer_norm_gradients(*doubles, **settings, upstream=upstream),
    ]
    for own, other in zip([output, *gradients], expected):
        assert_close(own.numpy(), other, dtype)


def test_dropout_and_its_gradient() -> None:
    generator = np.random.default_rng(SEED)
    x = generator.standard_normal([200, 30]).astype(np.float32)
    keys = generator.integers(-(2**63), 2**63 - 1, 200)
    given = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(given)
        output = hstu_op.load().dropout(given, tf.constant(keys), rate=0.3)
    factors = np.where(reference.kept(keys, 30, 0.3), np.float32(1 / 0.7), np.float32(0))
    np.testing.assert_array_equal(output.numpy(), x * factors)
    gradient = tape.gradient(output, given, output_gradients=tf.constant(2 * x))
    np.testing.assert_array_equal(gradient.numpy(), 2 * x * factors)
    np.testing.assert_array_equal(
        hstu_op.load().dropout(given, tf.constant(keys), rate=0.0).numpy(), x
    )


def test_static_shapes() -> None:
    ops = hstu_op.load()

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, SETTINGS.columns]),
            tf.TensorSpec([SETTINGS.width]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int32),
        ]
    )
    def output(projected: Any, weights: Any, offsets: Any, targets: Any) -> Any:
        found = ops.gated_attention(
            projected, weights, weights, offsets, targets, **SETTINGS._asdict()
        )
        gradients = tf.gradients(found, [projected, weights])
        assert [g.shape.as_list() for g in gradients] == [
            [None, SETTINGS.columns],
            [SETTINGS.width],
        ]
        return found

    assert output.get_concrete_function().outputs[0].shape.as_list() == [None, 3 * SETTINGS.width]


def gated(**changed: Any) -> Any:
    """Gated attention with some of its inputs or settings replaced."""
    given = case(SETTINGS, ([5, 4], [2, 0]))
    inputs: dict[str, Any] = {
        **given._asdict(),
        **SETTINGS._asdict(),
        **changed,
    }
    for name in ("settings", "upstream"):
        inputs.pop(name)
    return hstu_op.load().gated_attention(**inputs)


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


WRONG_ATTENTION: dict[str, tuple[dict[str, Any], str]] = {
    "a column too few": ({"projected": np.zeros([12, 191], np.float32)}, r"projected \[12,192\]"),
    "one row": ({"projected": np.zeros([192], np.float32)}, "projected of rank 2|rank 2"),
    "weights of another width": ({"gamma": np.ones(31, np.float32)}, r"gamma \[32\]"),
    "no offsets": ({"offsets": ints()}, r"offsets \[requests \+ 1\]"),
    "offsets of rank 2": ({"offsets": np.zeros([2, 2], np.int32)}, "offsets of rank 1"),
    "offsets that begin later": ({"offsets": ints(1, 5, 9)}, "begin with 0"),
    "falling offsets": ({"offsets": ints(0, 6, 5)}, r"offsets\[2\] from 6 to 12"),
    "offsets behind the end": ({"offsets": ints(0, 5, 13)}, r"offsets\[2\] from 5 to 12"),
    "targets of other requests": ({"targets": ints(1, 1, 1)}, r"targets \[2\]"),
    "more targets than rows": ({"targets": ints(1, 5)}, r"targets\[1\] from 0 to 4"),
    "negative targets": ({"targets": ints(-1, 1)}, r"targets\[0\] from 0 to 5"),
    "groups that do not divide": ({"groups": 3}, "groups that divide 32 columns, found 3"),
    "no heads": ({"heads": 0}, "heads"),
}


@pytest.mark.parametrize("name", WRONG_ATTENTION)
def test_wrong_inputs_of_attention_are_refused(name: str) -> None:
    changed, words = WRONG_ATTENTION[name]
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=words):
        gated(**changed)


def test_wrong_inputs_of_the_others_are_refused() -> None:
    ops = hstu_op.load()
    x, weights = tf.ones([4, 6]), tf.ones([6])
    refused = tf.errors.InvalidArgumentError
    with pytest.raises(refused, match=r"beta \[6\], found \[5\]"):
        ops.layer_norm(x, weights, tf.ones([5]), epsilon=1e-6, swish=False)
    with pytest.raises(refused, match="x of rank 2"):
        ops.layer_norm(weights, weights, weights, epsilon=1e-6, swish=False)
    with pytest.raises(refused, match=r"keys \[4\], found \[3\]"):
        ops.dropout(x, tf.zeros([3], tf.int64), rate=0.1)
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="dropout rate"):
            ops.dropout(x, tf.zeros([4], tf.int64), rate=rate)
    given = case(SETTINGS, ([5, 4], [2, 1]))
    own, history, history_offsets = targets_alone(given)
    good = [own.projected, history, given.gamma, given.beta, history_offsets, own.offsets]
    for place, value, words in (
        (1, history[:, 1:], r"history \[9,96\]"),
        (1, history[:5], r"history_offsets\[2\] from 3 to 5"),
        (4, history_offsets[:2], r"history_offsets \[3\], found \[2\]"),
        (5, ints(0, 2, 9), r"target_offsets\[2\] from 2 to 6"),
    ):
        inputs = [value if i == place else array for i, array in enumerate(good)]
        with pytest.raises(refused, match=words):
            ops.target_attention(*tensors(*inputs), **SETTINGS._asdict())


def test_an_upstream_gradient_of_another_width_is_refused() -> None:
    hstu_op.load()
    path = hstu_op.BUILD / f"tensorflow-{tf.__version__}" / hstu_op.LIBRARY
    operations = tf.load_op_library(str(path))
    x, weights = tf.zeros([2, 4]), tf.zeros([4])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected upstream \[2,4\]"):
        operations.hstu_layer_norm_grad(
            x=x, gamma=weights, beta=weights, upstream=tf.zeros([2, 5]), epsilon=1e-6, swish=False
        )
    given = case(SETTINGS, ([5], [2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected output \[8,96\]"):
        operations.hstu_gated_attention_grad(
            **{name: getattr(given, name) for name in given._fields if name != "settings"},
            output=tf.zeros([7, 96]),
            **SETTINGS._asdict(),
        )
