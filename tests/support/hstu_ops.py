"""The operations of HSTU and their gradients in float64, with all pairs and a mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


class Settings(NamedTuple):
    """The settings of gated attention."""

    heads: int
    attention_dim: int
    value_dim: int
    scale: float
    groups: int
    epsilon: float

    @property
    def width(self) -> int:
        """Number of values of a row, over all heads."""
        return self.heads * self.value_dim

    @property
    def columns(self) -> int:
        """Number of values of a projected row."""
        return 2 * self.heads * (self.attention_dim + self.value_dim)


def sigmoid(x: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-x))


def silu(x: Doubles) -> Doubles:
    return x * sigmoid(x)


def silu_slope(x: Doubles) -> Doubles:
    return sigmoid(x) * (1 + x * (1 - sigmoid(x)))


def normalised(x: Doubles, groups: int, epsilon: float) -> tuple[Doubles, Doubles]:
    """Values with mean 0 and variance 1 in each of the parts of a row, and what they are times."""
    parts = x.reshape(len(x), groups, x.shape[1] // groups)
    inverse = 1 / np.sqrt(parts.var(axis=2, keepdims=True) + epsilon)
    return ((parts - parts.mean(axis=2, keepdims=True)) * inverse).reshape(x.shape), inverse


def through_norm(upstream: Doubles, own: Doubles, inverse: Doubles) -> Doubles:
    """The gradient of x from that of its normalised values."""
    shape = len(own), inverse.shape[1], own.shape[1] // inverse.shape[1]
    above, parts = upstream.reshape(shape), own.reshape(shape)
    mean = above.mean(axis=2, keepdims=True)
    product = (above * parts).mean(axis=2, keepdims=True)
    return (inverse * (above - mean - parts * product)).reshape(own.shape)


def seen(rows: int, targets: int) -> NDArray[np.bool_]:
    """[rows, rows]: whether a row attends another."""
    mask = np.tril(np.ones([rows, rows], bool))
    history = rows - targets
    mask[history:, history:] = np.eye(targets, dtype=bool)
    return mask


def cut(projected: Doubles, s: Settings) -> tuple[Doubles, list[Doubles]]:
    """u, and v, q and k as [rows, heads, values]."""
    places = np.cumsum([s.width, s.width, s.heads * s.attention_dim])
    u, *others = np.split(projected, places, axis=1)
    return u, [part.reshape(len(part), s.heads, part.shape[1] // s.heads) for part in others]


def requests(offsets: Any, targets: Any) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
    """The rows of each request, and their mask."""
    for first, last, count in zip(offsets, offsets[1:], targets):
        yield slice(first, last), seen(last - first, count)


def gated_attention(
    projected: Doubles, gamma: Doubles, beta: Doubles, offsets: Any, targets: Any, s: Settings
) -> Doubles:
    """[L, 3 H V], of the operation's name."""
    output = np.zeros([len(projected), 3, s.width])
    u, (v, q, k) = cut(projected, s)
    for own, mask in requests(offsets, targets):
        products = np.einsum("ihd,jhd->hij", q[own], k[own]) / np.sqrt(s.attention_dim)
        weights = np.where(mask, silu(products), 0) * s.scale
        output[own, 1] = np.einsum("hij,jhd->ihd", weights, v[own]).reshape(-1, s.width)
    used = slice(0, offsets[-1])
    output[used, 0] = silu(u[used])
    norm = normalised(output[used, 1], s.groups, s.epsilon)[0] * gamma + beta
    output[used, 2] = output[used, 0] * norm
    return output.reshape(len(projected), -1)


def gated_attention_gradients(
    projected: Doubles,
    gamma: Doubles,
    beta: Doubles,
    offsets: Any,
    targets: Any,
    s: Settings,
    upstream: Doubles,
) -> list[Doubles]:
    """The gradients of projected, gamma and beta."""
    output = gated_attention(projected, gamma, beta, offsets, targets, s).reshape(-1, 3, s.width)
    above = upstream.reshape(output.shape)
    used = slice(0, offsets[-1])
    u, (v, q, k) = cut(projected, s)
    own, inverse = normalised(output[:, 1], s.groups, s.epsilon)
    of_u, of_av = np.zeros([2, len(projected), s.width])
    of_factor = above[:, 2] * output[:, 0]
    of_u[used] = ((above[:, 0] + above[:, 2] * (own * gamma + beta)) * silu_slope(u))[used]
    of_av[used] = (above[:, 1] + through_norm(of_factor * gamma, own, inverse))[used]
    of_v, of_q, of_k = np.zeros_like(v), np.zeros_like(q), np.zeros_like(k)
    factor = 1 / np.sqrt(s.attention_dim)
    heads = of_av.reshape(v.shape)
    for rows, mask in requests(offsets, targets):
        products = np.einsum("ihd,jhd->hij", q[rows], k[rows]) * factor
        weights = np.where(mask, silu(products), 0) * s.scale
        of_weights = np.einsum("ihd,jhd->hij", heads[rows], v[rows]) * s.scale
        of_products = np.where(mask, of_weights * silu_slope(products), 0) * factor
        of_v[rows] = np.einsum("hij,ihd->jhd", weights, heads[rows])
        of_q[rows] = np.einsum("hij,jhd->ihd", of_products, k[rows])
        of_k[rows] = np.einsum("hij,ihd->jhd", of_products, q[rows])
    parts = [part.reshape(len(projected), -1) for part in (of_u, of_v, of_q, of_k)]
    of_gamma, of_beta = (of_factor * own)[used].sum(axis=0), of_factor[used].sum(axis=0)
    return [np.concatenate(parts, axis=1), of_gamma, of_beta]


def layer_norm(
    x: Doubles, gamma: Doubles, beta: Doubles, *, epsilon: float, swish: bool
) -> Doubles:
    """[L, W], of the operation's name."""
    norm = normalised(x, 1, epsilon)[0] * gamma + beta
    return x * sigmoid(norm) if swish else norm


def layer_norm_gradients(
    x: Doubles, gamma: Doubles, beta: Doubles, *, epsilon: float, swish: bool, upstream: Doubles
) -> list[Doubles]:
    """The gradients of x, gamma and beta."""
    own, inverse = normalised(x, 1, epsilon)
    share = sigmoid(own * gamma + beta)
    of_norm = upstream * x * share * (1 - share) if swish else upstream
    of_x = through_norm(of_norm * gamma, own, inverse) + (upstream * share if swish else 0)
    return [of_x, (of_norm * own).sum(axis=0), of_norm.sum(axis=0)]


def kept(keys: NDArray[np.int64], width: int, rate: float) -> NDArray[np.bool_]:
    """[rows, width]: what dropout keeps."""

    def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = (x ^ x >> np.uint64(shift)) * np.uint64(factor) % np.uint64(2**32)
        return x

    words = keys.astype(np.uint64)
    rows = mixed(words % np.uint64(2**32) ^ mixed(words >> np.uint64(32)))
    columns = np.arange(width, dtype=np.uint64) * np.uint64(0x9E3779B9)
    return mixed((rows[:, None] + columns) % np.uint64(2**32)) >= int(rate * 2**32)
