"""The same model in plain PyTorch and in ONNX Runtime, with an artifact's float32 weights.

Both packages are optional: `requirements/serving-peers.txt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.contender import THREADS, Score
from benchmarks.serve.models import source
from benchmarks.shapes import SHAPES
from serving.artifact import DENSE_FILE, ROWS, TABLES_FILE, Artifact, map_tensors, read_artifact

_CALIBRATION_SAMPLES = 2048
_Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]  # kernel [I, O], bias [O]


def _layers(artifact: Artifact) -> tuple[_Layers, _Layers]:
    """Kernels and biases of both MLPs; the rows of the interaction's padding are left out."""
    dense = map_tensors(artifact.folder / DENSE_FILE)
    model = artifact.model
    assert model.bottom_mlp
    assert model.top_mlp
    bottom, top = (
        [
            (np.array(dense[f"{mlp}_kernel_{i}"]), np.array(dense[f"{mlp}_bias_{i}"]))
            for i in range(len(units))
        ]
        for mlp, units in (("bottom", model.bottom_mlp), ("top", model.top_mlp))
    )
    tables = len(model.vocab_sizes)
    kernel, bias = top[0]
    top[0] = kernel[: model.embedding_dim + tables * (tables + 1) // 2], bias
    return bottom, top


def _first_keys(artifact: Artifact) -> NDArray[np.int64]:
    """The key of each table's id 0, int64 [T]."""
    sizes = np.array(artifact.model.vocab_sizes, np.int64)
    return np.cumsum(sizes) - sizes


def _triangle(vectors: int) -> NDArray[np.int64]:
    """Where the pairs of the interaction lie in a flat matrix of all products."""
    rows, columns = np.tril_indices(vectors, -1)
    return (rows * vectors + columns).astype(np.int64)


def open_torch(folder: Path) -> dict[str, Score]:
    """Builds the model in PyTorch: as it stands, traced and frozen, and compiled."""
    import torch
    from torch import nn

    torch.set_num_threads(THREADS)
    artifact = read_artifact(folder)
    tables = map_tensors(folder / TABLES_FILE)

    def mlp(layers: _Layers, last_relu: bool) -> nn.Sequential:
        modules: list[nn.Module] = []
        for index, (kernel, bias) in enumerate(layers):
            linear = nn.Linear(*kernel.shape)
            linear.weight.data = torch.from_numpy(kernel.T.copy())
            linear.bias.data = torch.from_numpy(bias)
            relu = last_relu or index < len(layers) - 1
            modules += [linear, nn.ReLU()] if relu else [linear]
        return nn.Sequential(*modules)

    class TorchDLRM(nn.Module):
        """The DLRM of `model.py`, for inference."""

        def __init__(self) -> None:
            super().__init__()
            bottom, top = _layers(artifact)
            self.bottom, self.top = mlp(bottom, True), mlp(top, False)
            first_keys, rows = _first_keys(artifact), np.array(tables[ROWS])
            self.register_buffer("rows", torch.from_numpy(rows))
            self.register_buffer("first_keys", torch.from_numpy(first_keys))
            self.register_buffer("triangle", torch.from_numpy(_triangle(len(first_keys) + 1)))

        def forward(self, dense: Any, ids: Any) -> Any:
            """Computes the logits [B] of dense [B, D] and ids [B, T]."""
            bottom = self.bottom(dense)
            rows = nn.functional.embedding(ids + self.first_keys, self.rows)
            vectors = torch.cat([bottom[:, None], rows], 1)
            products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
            pairs = products.index_select(1, self.triangle)
            return self.top(torch.cat([bottom, pairs], 1)).squeeze(1)

    def scoring(module: Any) -> Score:
        def score(dense: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                return module(torch.from_numpy(dense), torch.from_numpy(ids)).numpy()

        return score

    model = TorchDLRM().eval()
    shape = artifact.model
    assert shape.num_dense
    example = (
        torch.zeros(2, shape.num_dense),
        torch.zeros(2, len(shape.vocab_sizes), dtype=torch.int32),
    )
    with torch.inference_mode():
        traced = torch.jit.freeze(torch.jit.trace(model, example))
    return {
        "eager": scoring(model),
        "jit": scoring(traced),
        "compile": scoring(torch.compile(model, dynamic=True)),
    }


def _graph(artifact: Artifact) -> Any:
    """The model in ONNX, from dense [B, D] and vectors [B, T, W] to logits [B, 1]."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights = [], []
    last = 0

    def constant(name: str, values: NDArray[Any]) -> str:
        weights.append(numpy_helper.from_array(values, name))
        return name

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nonlocal last
        last += 1
        nodes.append(helper.make_node(kind, list(inputs), [f"value_{last}"], **attributes))
        return f"value_{last}"

    def mlp(name: str, value: str, layers: _Layers, last_relu: bool) -> str:
        for index, (kernel, bias) in enumerate(layers):
            kernel_name = constant(f"{name}_kernel_{index}", kernel)
            value = node("Gemm", value, kernel_name, constant(f"{name}_bias_{index}", bias))
            if last_relu or index < len(layers) - 1:
                value = node("Relu", value)
        return value

    shape = artifact.model
    tables, width = len(shape.vocab_sizes), shape.embedding_dim
    bottom_layers, top_layers = _layers(artifact)
    bottom = mlp("bottom", "dense", bottom_layers, True)
    axis = constant("axis", np.array([1], np.int64))
    stacked = node("Concat", node("Unsqueeze", bottom, axis), "vectors", axis=1)
    products = node("MatMul", stacked, node("Transpose", stacked, perm=[0, 2, 1]))
    flat = node("Flatten", products)
    pairs = node("Gather", flat, constant("triangle", _triangle(tables + 1)), axis=1)
    logits = mlp("top", node("Concat", bottom, pairs, axis=1), top_layers, False)
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "dlrm",
        [
            helper.make_tensor_value_info("dense", float32, ["B", shape.num_dense]),
            helper.make_tensor_value_info("vectors", float32, ["B", tables, width]),
        ],
        [helper.make_tensor_value_info(logits, float32, ["B", 1])],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def _open_graph(artifact: Artifact, graph: bytes | str) -> dict[str, Score]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rows = np.array(map_tensors(artifact.folder / TABLES_FILE)[ROWS])
    first_keys = _first_keys(artifact)

    def score(dense: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
        vectors = rows.take(ids + first_keys, axis=0)
        return session.run(None, {"dense": dense, "vectors": vectors})[0][:, 0]

    return {"": score}


def open_onnx(folder: Path) -> dict[str, Score]:
    """Runs the dense part in ONNX Runtime; NumPy gathers the rows."""
    artifact = read_artifact(folder)
    return _open_graph(artifact, _graph(artifact).SerializeToString())


def open_quantised_onnx(folder: Path) -> dict[str, Score]:
    """The same with MLPs in int8, quantised statically and per column by ONNX Runtime's tool."""
    import onnx
    from onnxruntime import quantization

    artifact = read_artifact(folder)
    plain, quantised = folder.parent / "plain.onnx", folder.parent / "int8.onnx"
    if not quantised.exists():
        onnx.save(_graph(artifact), str(plain))
        quantization.quantize_static(
            str(plain),
            str(quantised),
            _samples_of(artifact),
            op_types_to_quantize=["Gemm"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return _open_graph(artifact, str(quantised))


def _samples_of(artifact: Artifact) -> Any:
    """The samples from which ONNX Runtime takes the ranges of activations."""
    from onnxruntime.quantization import CalibrationDataReader

    (shape,) = (s for s in SHAPES.values() if s.vocab_sizes == artifact.model.vocab_sizes)
    dense, ids, _ = source(shape, _CALIBRATION_SAMPLES).read(0, _CALIBRATION_SAMPLES)
    rows = map_tensors(artifact.folder / TABLES_FILE)[ROWS]
    vectors = rows[ids + _first_keys(artifact)]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            pieces = np.split(dense, 16), np.split(vectors, 16)
            self._inputs: Iterator[Any] = iter({"dense": a, "vectors": b} for a, b in zip(*pieces))

        def get_next(self) -> Any:
            return next(self._inputs, None)

    return Reader()
