"""Optimizers in float64 NumPy, written to be read: what the fast ones must equal.

A rule takes weights, their state and gradients of one shape, or rows [n, W] with their state, and
returns weights and state after the step.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np

Step = Callable[[Any, list[Any], Any, float], tuple[Any, list[Any]]]


class Rule(NamedTuple):
    """An optimizer.

    Attributes:
        first: What each part of the state starts with.
        step: From weights, state, gradients and learning rate to weights and state.
    """

    first: tuple[float, ...]
    step: Step


def sgd() -> Rule:
    return Rule((), lambda w, state, g, rate: (w - rate * g, []))


def momentum(share: float) -> Rule:
    def step(w: Any, state: list[Any], g: Any, rate: float) -> Any:
        velocity = share * state[0] + g
        return w - rate * velocity, [velocity]

    return Rule((0.0,), step)


def adagrad(epsilon: float, first: float) -> Rule:
    def step(w: Any, state: list[Any], g: Any, rate: float) -> Any:
        total = state[0] + g**2
        return w - rate * g / (np.sqrt(total) + epsilon), [total]

    return Rule((first,), step)


def rowwise_adagrad(epsilon: float, first: float) -> Rule:
    def step(w: Any, state: list[Any], g: Any, rate: float) -> Any:
        total = state[0] + np.mean(g**2, axis=-1, keepdims=True)
        return w - rate * g / (np.sqrt(total) + epsilon), [total]

    return Rule((first,), step)


def adam(betas: tuple[float, float], epsilon: float) -> Rule:
    def step(w: Any, state: list[Any], g: Any, rate: float) -> Any:
        (b1, b2), t = betas, state[2] + 1
        m, v = b1 * state[0] + (1 - b1) * g, b2 * state[1] + (1 - b2) * g**2
        change = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + epsilon)
        return w - rate * change, [m, v, t]

    return Rule((0.0, 0.0, 0.0), step)


def ftrl(base: float, l1: float, l2: float, first: float) -> Rule:
    """As McMahan et al. write it, with penalties at the rate `base`.

    z starts at -sqrt(sum) / rate * w; the state is rate * z + sqrt(sum) * w.
    """

    def step(w: Any, state: list[Any], g: Any, rate: float) -> Any:
        total, z = state[0] + g**2, state[1] - np.sqrt(state[0]) * w  # z times the rate
        z = z + rate * g - (np.sqrt(total) - np.sqrt(state[0])) * w
        shrunk = -(z - np.sign(z) * l1 * base) / (np.sqrt(total) + 2 * l2 * base)
        w = np.where(np.abs(z) > l1 * base, shrunk, 0.0)
        return w, [total, z + np.sqrt(total) * w]

    return Rule((first, 0.0), step)


def decayed(rule: Rule, decay: float) -> Rule:
    """A rule on weights that have decayed before."""
    return Rule(
        rule.first, lambda w, state, g, rate: rule.step(w - rate * decay * w, state, g, rate)
    )


class Training:
    """A list of weights that a rule updates.

    Args:
        weights: The weights, float64, changed in place.
        rule: The optimizer.
        by_row: Whether only those rows [n, W] change whose gradients are not all zero.
    """

    def __init__(self, weights: list[Any], rule: Rule, *, by_row: bool) -> None:
        self._weights, self._rule, self._by_row = weights, rule, by_row
        self._state = [[np.full_like(w, first) for first in rule.first] for w in weights]

    def begin_anew(self, number: int, rows: list[int], values: Any) -> None:
        """Gives rows of the weights of this number new values, and their state its first ones."""
        self._weights[number][rows] = values
        for part, first in zip(self._state[number], self._rule.first):
            part[rows] = first

    def step(self, gradients: list[Any], rate: float) -> None:
        """Changes every weight, or every row of the batch."""
        for w, state, g in zip(self._weights, self._state, gradients):
            touched = (g != 0).any(axis=1) if self._by_row else ...
            w[touched], parts = self._rule.step(
                w[touched], [part[touched] for part in state], g[touched], rate
            )
            for part, value in zip(state, parts):
                part[touched] = value
