"""The same DLRM in plain PyTorch, in three forms.

`bags` has an `EmbeddingBag` for each table, with sparse gradients: the usual form. `tuned` lays the
tables one behind the other, so that a batch takes one lookup and one sparse update instead of one
for each table, and has a backward pass of its own for the interaction. `compiled` is that form,
with `torch.compile` for all but the lookup.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.peers.case import Floats, Layers, TrainCase
from dlrm.data import Batch

BAGS, COMPILED = "bags", "compiled"


def mlp(layers: Layers, last_relu: bool) -> nn.Sequential:
    """Builds linear layers with ReLU between them, with these weights."""
    modules: list[nn.Module] = []
    for index, (kernel, bias) in enumerate(layers):
        linear = nn.Linear(*kernel.shape)
        linear.weight.data = torch.from_numpy(kernel.T.copy())
        linear.bias.data = torch.from_numpy(bias.copy())
        relu = last_relu or index < len(layers) - 1
        modules += [linear, nn.ReLU()] if relu else [linear]
    return nn.Sequential(*modules)


def timed_steps(
    step: Callable[[int], torch.Tensor], batches: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Takes a step on each batch; see `Trainable.train`."""
    seconds, losses = [], []
    for number in batches:
        begin = time.perf_counter()
        losses.append(step(number).item())
        seconds.append(time.perf_counter() - begin)
    return seconds, losses


class VectorPairs(torch.autograd.Function):
    """The dot products of all pairs of vectors, with a backward pass written by hand.

    Autograd's own would multiply twice, as it does not know that the matrix of products is
    symmetric.
    """

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Multiplies vectors [B, F, W]; the result [B, P] is that at `pairs` of [B, F * F]."""
        ctx.save_for_backward(vectors, pairs)
        return torch.bmm(vectors, vectors.mT).flatten(1).index_select(1, pairs)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient [B, F, W] of the vectors."""
        vectors, pairs = ctx.saved_tensors
        samples, features, _ = vectors.shape
        lower = vectors.new_zeros(samples, features * features).index_copy_(1, pairs, upstream)
        lower = lower.view(samples, features, features)
        return torch.bmm(lower + lower.mT, vectors), None


class DensePartOfTorch(nn.Module):
    """Both MLPs and the dot interaction, without the tables.

    Args:
        case: The sizes and first weights.
        own_backward: Whether the interaction's backward pass is `VectorPairs.backward`.
    """

    def __init__(self, case: TrainCase, own_backward: bool) -> None:
        super().__init__()
        self.own_backward = own_backward
        bottom, top = case.layers()
        self.bottom, self.top = mlp(bottom, True), mlp(top, False)
        vectors = len(case.vocab_sizes) + 1
        rows, columns = torch.tril_indices(vectors, vectors, -1)
        self.register_buffer("pairs", rows * vectors + columns)

    def forward(
        self, dense: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Computes the loss of dense [B, D], vectors [B, T, W] and labels [B]."""
        bottom = self.bottom(dense)
        stacked = torch.cat([bottom[:, None], vectors], 1)  # [B, F, W]
        if self.own_backward:
            pairs = VectorPairs.apply(stacked, self.pairs)
        else:
            pairs = torch.bmm(stacked, stacked.mT).flatten(1).index_select(1, self.pairs)
        logits = self.top(torch.cat([bottom, pairs], 1)).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)


class TableBags(nn.Module):
    """An `EmbeddingBag` of one id for each table.

    Args:
        case: The sizes and first rows.
    """

    def __init__(self, case: TrainCase) -> None:
        super().__init__()
        rows = case.rows()
        self.tables = nn.ModuleList()
        for first, size in zip(case.first_keys, case.vocab_sizes):
            weight = torch.from_numpy(np.array(rows[first : first + size]))
            bag = nn.EmbeddingBag.from_pretrained(weight, freeze=False, mode="sum", sparse=True)
            self.tables.append(bag)

    def prepare(self, ids: NDArray[np.int32]) -> torch.Tensor:
        """Ids [B, T] as the tables take them: int64 [T, B]."""
        return torch.from_numpy(ids.T.astype(np.int64, order="C"))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up the vectors [B, T, W] of ids [T, B]."""
        offsets = torch.arange(ids.shape[1])
        return torch.stack([bag(i, offsets) for bag, i in zip(self.tables, ids)], 1)


class OneTable(nn.Module):
    """All tables as one.

    Args:
        case: The sizes and first rows.
    """

    def __init__(self, case: TrainCase) -> None:
        super().__init__()
        weight = torch.from_numpy(np.array(case.rows()))
        self.table = nn.Embedding.from_pretrained(weight, freeze=False, sparse=True)
        self._first_keys = case.first_keys

    def prepare(self, ids: NDArray[np.int32]) -> torch.Tensor:
        """Ids [B, T] as rows of the one table: int64 [B, T]."""
        return torch.from_numpy(ids + self._first_keys)

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        """Looks up the vectors [B, T, W] of keys [B, T]."""
        return self.table(keys)


class TorchSystem:
    """The model, its optimizer and the batches as tensors.

    Args:
        case: What to train.
        batches: The batches.
        form: The form of the model.

    Attributes:
        versions: See `Trainable.versions`.
    """

    def __init__(self, case: TrainCase, batches: Sequence[Batch], form: str) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.versions = f"PyTorch {torch.__version__}"
        self._tables = TableBags(case) if form == BAGS else OneTable(case)
        self._dense = DensePartOfTorch(case, own_backward=form != BAGS)
        parameters = [*self._tables.parameters(), *self._dense.parameters()]
        self._optimizer = torch.optim.SGD(parameters, case.lr)
        self._loss = torch.compile(self._dense) if form == COMPILED else self._dense
        self._batches = [
            (
                torch.from_numpy(batch.dense),
                self._tables.prepare(batch.ids),
                torch.from_numpy(batch.labels),
            )
            for batch in batches
        ]

    def _step(self, number: int) -> torch.Tensor:
        dense, ids, labels = self._batches[number]
        loss = self._loss(dense, self._tables(ids), labels)
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
            return self._tables(self._tables.prepare(ids)).numpy()


def build(case: TrainCase, batches: Sequence[Batch], form: str) -> TorchSystem:
    """Builds the model in one of its forms."""
    return TorchSystem(case, batches, form)
