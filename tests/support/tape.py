"""Reverse-mode differentiation of float64 NumPy, small enough to be read: for reference models."""

from __future__ import annotations

import numpy as np


class Node:
    """A value, and how the gradient of a sum that it enters reaches what it was computed from."""

    def __init__(self, value, parents=()):
        self.value = np.asarray(value, np.float64)
        self.parents = parents  # pairs of a node and a function of the gradient of this one
        self.gradient = np.zeros_like(self.value)

    @property
    def shape(self):
        return self.value.shape

    def __add__(self, other):
        other = as_node(other)
        return Node(
            self.value + other.value,
            [(x, lambda g, x=x: fold(g, x.shape)) for x in (self, other)],
        )

    def __mul__(self, other):
        other = as_node(other)
        return Node(
            self.value * other.value,
            [
                (self, lambda g: fold(g * other.value, self.shape)),
                (other, lambda g: fold(g * self.value, other.shape)),
            ],
        )

    def __matmul__(self, other):
        left, right = self.value, other.value
        return Node(
            left @ right,
            [
                (self, lambda g: fold(g @ np.swapaxes(right, -1, -2), self.shape)),
                (other, lambda g: fold(np.swapaxes(left, -1, -2) @ g, other.shape)),
            ],
        )

    def __getitem__(self, index):
        """Part of it, or rows by an array of indices."""

        def gradient(g):
            found = np.zeros_like(self.value)
            np.add.at(found, index, g)
            return found

        return Node(self.value[index], [(self, gradient)])

    def reshape(self, *shape):
        return Node(self.value.reshape(*shape), [(self, lambda g: g.reshape(self.shape))])

    def transpose(self, *axes):
        back = np.argsort(axes)
        return Node(self.value.transpose(*axes), [(self, lambda g: g.transpose(*back))])

    def mean(self):
        """The mean over the last axis, which stays with one entry."""
        width = self.shape[-1]
        value = self.value.mean(-1, keepdims=True)
        return Node(value, [(self, lambda g: np.broadcast_to(g / width, self.shape))])

    def power(self, exponent):
        slope = exponent * self.value ** (exponent - 1)
        return Node(self.value**exponent, [(self, lambda g: g * slope)])

    def sigmoid(self):
        value = 1 / (1 + np.exp(-self.value))
        return Node(value, [(self, lambda g: g * value * (1 - value))])

    def backward(self, gradient):
        """Adds to the gradient of everything that this was computed from."""
        order, seen = [], set()

        def visit(node):
            if id(node) not in seen:
                seen.add(id(node))
                for parent, _ in node.parents:
                    visit(parent)
                order.append(node)

        visit(self)
        self.gradient = self.gradient + gradient
        for node in reversed(order):
            for parent, of_parent in node.parents:
                parent.gradient = parent.gradient + of_parent(node.gradient)


def as_node(value):
    return value if isinstance(value, Node) else Node(value)


def fold(gradient, shape):
    """Sums over the axes along which an array of this shape was repeated."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    repeated = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] > 1)
    return gradient.sum(repeated, keepdims=True)


def concatenate(nodes, axis):
    ends = np.cumsum([node.shape[axis] for node in nodes])

    def part(number):
        return lambda g: np.split(g, ends[:-1], axis)[number]

    parents = [(node, part(number)) for number, node in enumerate(nodes)]
    return Node(np.concatenate([node.value for node in nodes], axis), parents)
