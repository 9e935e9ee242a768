"""TorchRec's DLRM on FBGEMM's tables, which update their rows in the backward pass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch as TorchRecBatch
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from benchmarks.peers.case import Floats, Layers, TrainCase
from benchmarks.peers.plain_torch import timed_steps
from dlrm.data import Batch


def upper_order(width: int, vectors: int) -> NDArray[np.int64]:
    """Where TorchRec's inputs of the top MLP are among ours.

    Both begin with the bottom MLP's output. Pairs are then in the order of the upper triangle in
    TorchRec, and of the lower one here.

    Args:
        width: Values of a vector.
        vectors: Number of vectors that interact.
    """
    lower = np.zeros((vectors, vectors), np.int64)
    rows, columns = np.tril_indices(vectors, -1)
    lower[columns, rows] = np.arange(len(rows))
    return np.concatenate([np.arange(width), width + lower[np.triu_indices(vectors, 1)]])


def fill(module: nn.Module, layers: Layers) -> None:
    """Gives the linear layers of a module these weights."""
    linear = [child for child in module.modules() if isinstance(child, nn.Linear)]
    assert len(linear) == len(layers), "a kernel and a bias for each layer"
    with torch.no_grad():
        for child, (kernel, bias) in zip(linear, layers):
            child.weight.copy_(torch.from_numpy(kernel.T.copy()))
            child.bias.copy_(torch.from_numpy(bias))


class TorchRecSystem:
    """The model, its dense optimizer and the batches in TorchRec's form.

    Args:
        case: What to train.
        batches: The batches.

    Attributes:
        versions: See `Trainable.versions`.
    """

    def __init__(self, case: TrainCase, batches: Sequence[Batch]) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        packages = ("torchrec", "fbgemm-gpu-cpu", "torch")
        self.versions = ", ".join(f"{package} {version(package)}" for package in packages)
        self._names = [f"feature_{table}" for table in range(len(case.vocab_sizes))]
        self._width = case.width
        self._tables = FusedEmbeddingBagCollection(
            [
                EmbeddingBagConfig(
                    name=f"table_{name}",
                    embedding_dim=case.width,
                    num_embeddings=size,
                    feature_names=[name],
                )
                for name, size in zip(self._names, case.vocab_sizes)
            ],
            optimizer_type=torch.optim.SGD,
            optimizer_kwargs={"lr": case.lr},
        )
        model = DLRM(self._tables, case.num_dense, list(case.bottom_mlp), list(case.top_mlp))
        bottom, top = case.layers()
        kernel, bias = top[0]
        top[0] = kernel[upper_order(case.width, len(case.vocab_sizes) + 1)], bias
        fill(model.dense_arch, bottom)
        fill(model.over_arch, top)
        rows = case.rows()
        for name, first, size in zip(self._names, case.first_keys, case.vocab_sizes):
            weight = self._tables.embedding_bags[f"table_{name}"].weight
            weight.data.copy_(torch.from_numpy(np.array(rows[first : first + size])))
        self._model = DLRMTrain(model)
        dense = [*model.dense_arch.parameters(), *model.over_arch.parameters()]
        self._optimizer = torch.optim.SGD(dense, case.lr)
        self._batches = [
            TorchRecBatch(
                torch.from_numpy(batch.dense),
                self._features(batch.ids),
                torch.from_numpy(batch.labels),
            )
            for batch in batches
        ]

    def _features(self, ids: NDArray[np.int32]) -> KeyedJaggedTensor:
        """Ids [B, T] as TorchRec takes them: those of a feature lie one behind the other."""
        return KeyedJaggedTensor.from_lengths_sync(
            self._names,
            torch.from_numpy(ids.T.reshape(-1).copy()),
            torch.ones(ids.size, dtype=torch.int32),
        )

    def _step(self, number: int) -> torch.Tensor:
        loss, _ = self._model(self._batches[number])
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss

    def train(self, batches: Sequence[int]) -> tuple[list[float], list[float]]:
        """See `Trainable.train`."""
        return timed_steps(self._step, batches)

    def rows(self, ids: NDArray[np.int32]) -> Floats:
        """See `Trainable.rows`."""
        with torch.no_grad():
            found = self._tables(self._features(ids)).values()
        return found.reshape(*ids.shape, self._width).numpy()


def build(case: TrainCase, batches: Sequence[Batch], form: str) -> TorchRecSystem:
    """Builds the model."""
    return TorchRecSystem(case, batches)
