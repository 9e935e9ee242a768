"""HSTU's layer in plain PyTorch, with which `benchmarks.hstu` compares ours; it starts it.

Two forms. Jagged: positions of all sequences lie one behind the other and are multiplied together;
attention takes one sequence after another. Padded: all sequences have the length of the longest,
and attention takes all at once, with a mask. Attention is two products and what lies between.
"""

from __future__ import annotations

import math
from typing import Any, Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.hstu_cases import EPSILON, THREADS, HstuCase, sample, work


class _Layers:
    """A stack of layers in one of the two forms.

    Args:
        case: Sequences and shape.
        form: `jagged` or `padded`.
        weights: Each layer's weights.
    """

    def __init__(self, case: HstuCase, form: str, weights: list[dict[str, torch.Tensor]]) -> None:
        self._case, self._weights = case, weights
        masks = [torch.from_numpy(case.mask(request)) for request in range(case.requests)]
        factor = case.scale()
        if form == "jagged":
            self._attend = self._jagged
            self._masks = [factor * mask for mask in masks]
        else:
            self._attend = self._padded
            longest = int(case.lengths.max())
            self._mask = torch.zeros(case.requests, 1, longest, longest)
            for request, mask in enumerate(masks):
                self._mask[request, 0, : len(mask), : len(mask)] = factor * mask

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Passes positions [..., W] through all layers."""
        case = self._case
        for layer in self._weights:
            normal = F.layer_norm(
                x, (case.width,), layer["input_scale"], layer["input_shift"], EPSILON
            )
            u, v, q, k = (normal @ layer["kernel"] + layer["bias"]).split(case.values, -1)
            u = F.silu(u)
            av = self._attend(q, k, v)
            y = u * F.layer_norm(av, (case.values,), layer["scale"], layer["shift"], EPSILON)
            x = x + torch.cat([u, av, y], -1) @ layer["output"]
        return x

    def _jagged(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        lengths = self._case.lengths.tolist()
        parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), self._masks)
        return torch.cat([self._product(*part) for part in parts])

    def _padded(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self._product(q, k, v, self._mask)

    def _product(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = (
            x.unflatten(-1, (self._case.heads, self._case.head_dim)).transpose(-2, -3)
            for x in (q, k, v)
        )
        scores = F.silu(q @ k.transpose(-1, -2) / math.sqrt(self._case.head_dim)) * mask
        return (scores @ v).transpose(-2, -3).flatten(-2)


def _pad(rows: NDArray[Any], case: HstuCase) -> torch.Tensor:
    """Puts jagged rows [L, W] at the starts of padded sequences [B, longest, W]."""
    padded = np.zeros((case.requests, int(case.lengths.max()), rows.shape[1]), np.float32)
    for request, part in enumerate(np.split(rows, case.offsets[1:-1])):
        padded[request, : len(part)] = part
    return torch.from_numpy(padded)


def _jag(rows: torch.Tensor, case: HstuCase) -> NDArray[Any]:
    """The reverse of `_pad`."""
    parts = [rows[request, :length] for request, length in enumerate(case.lengths.tolist())]
    return torch.cat(parts).numpy()


def open_torch(case: HstuCase, form: str) -> Callable[[], NDArray[Any]]:
    """Builds the layers and returns one pass through them; see `OpenCase`."""
    torch.set_num_threads(THREADS)
    data = case.data()
    trains = case.kind == "train"
    weights = [
        {name: torch.from_numpy(w).requires_grad_(trains) for name, w in layer.items()}
        for layer in data[2]
    ]
    layers = _Layers(case, form, weights)
    padded = form == "padded"
    x, upstream = (_pad(v, case) if padded else torch.from_numpy(v) for v in data[:2])

    def jagged(rows: torch.Tensor) -> NDArray[Any]:
        return _jag(rows, case) if padded else rows.numpy()

    if not trains:
        is_target = case.is_target

        def infer() -> NDArray[Any]:
            with torch.inference_mode():
                return sample(jagged(layers(x))[is_target])

        return infer

    leaves = [x.requires_grad_(), *(w for layer in weights for w in layer.values())]

    def train() -> NDArray[Any]:
        output = layers(x)
        gradients = torch.autograd.grad(output, leaves, upstream)
        of_rows, *of_weights = [g.detach() for g in gradients]
        return sample(
            jagged(output.detach()), jagged(of_rows)[-64:], *(g[:1].numpy() for g in of_weights)
        )

    return train


if __name__ == "__main__":
    work(open_torch)
