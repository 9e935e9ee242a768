"""Where TensorFlow would run each operation of a training step on a GPU, from its own registry.

No GPU is needed: the step is traced as on a GPU, by two ranks, and each operation is looked up
among the kernels that TensorFlow's wheel, and SOK's, hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from dataset import open_data
from dlrm.config import Config
from dlrm.distributed import devices
from dlrm.distributed.collective import Collective
from dlrm.train.build import build_trainer
from model import build_model

pytestmark = pytest.mark.gpu
# What describes the graph rather than computes, and what reads shapes.
NO_WORK = {
    *("Const", "Placeholder", "Identity", "IdentityN", "NoOp", "Assert", "ReadVariableOp"),
    *("PartitionedCall", "StatefulPartitionedCall", "PreventGradient", "StopGradient", "Shape"),
}
FEW = 16  # values; counts of keys and numbers of axes are wanted on the host


class TwoRanks(Collective):
    """The first of two ranks, for tracing: what it sends comes back."""

    size = 2


def device_of(operation: tf.Operation) -> str:
    """GPU, or HOST where TensorFlow's kernel for GPU programs computes on the host, or CPU."""
    fitting = []
    for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel:
        for constraint in kernel.constraint:
            allowed = {tf.as_dtype(value) for value in constraint.allowed_values.list.type}
            found = operation.get_attr(constraint.name)
            if allowed and not allowed.issuperset(found if isinstance(found, list) else [found]):
                break
        else:
            fitting.append(kernel)
    devices_found = {kernel.device_type for kernel in fitting}
    if "GPU" in devices_found:
        return "GPU"
    return "HOST" if "DEFAULT" in devices_found else "CPU"


def operations(graph: Any) -> Iterator[tf.Operation]:
    """Those of a graph and of the functions that it calls."""
    yield from graph.get_operations()
    for name in graph._functions:
        function = graph._functions[name]
        inner = getattr(function, "graph", None)
        if inner is not None:
            yield from inner.get_operations()


def is_small(operation: tf.Operation) -> bool:
    """Whether it gives a few values, and is known to."""
    sizes = [tensor.shape.num_elements() for tensor in operation.outputs]
    return all(size is not None and size <= FEW for size in sizes)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("backend", ["alltoall", "sok"])
def test_a_step_stays_on_the_gpu(
    backend: str, amp: bool, compress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "sok":
        pytest.importorskip("sparse_operation_kit")
    if not tf.test.is_built_with_cuda():
        pytest.skip("this TensorFlow has no GPU kernels to look up")
    config = Config.of(
        use_synthetic_dataset=True,
        global_batch_size=64,
        embedding_dim=8,
        bottom_mlp=(8,),
        top_mlp=(8, 1),
        amp=amp,
        compress=compress,
        embedding=backend,
    )
    collective = TwoRanks()
    data = open_data(config, collective.rank, collective.size)
    small = data._replace(vocab_sizes=(50,) * len(data.vocab_sizes))
    logical = tf.config.list_logical_devices
    monkeypatch.setattr(
        tf.config,
        "list_logical_devices",
        lambda kind=None: ["a GPU"] if kind == "GPU" else logical(kind),
    )
    assert devices.has_gpu()
    trainer = build_trainer(config, backend, collective, small, build_model)
    found = list(operations(trainer.step._compiled_train.graph))
    types = {operation.type for operation in found}
    assert types >= {"ResourceGather", "MatMul", "ResourceScatterUpdate"}
    # The bundle leaves cuDNN's libraries for these out.
    assert not [t for t in types if t.startswith(("Conv", "Cudnn", "FusedBatchNorm", "MaxPool"))]
    assert {"alltoall": "DynamicPartition", "sok": "DistSelect"}[backend] in types
    elsewhere = [
        (operation.type, [tensor.dtype.name for tensor in operation.inputs], operation.name)
        for operation in found
        if operation.type not in NO_WORK and not is_small(operation)
        if device_of(operation) != "GPU"
    ]
    assert not elsewhere
