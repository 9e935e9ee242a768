"""The HSTU model in float64 NumPy, over padded sequences: what the fast code must equal.

B requests, padded to N rows of W values: the user's, the history, the candidates.
"""

from __future__ import annotations

import math

import numpy as np

from dlrm.formats import splitmix64
from tests.support.tape import Node, concatenate

ACTIONS = (1, 2, 4, 8, 16)


def logits(config, max_length, weights, batch, vectors, items_per_category, dropout_key=None):
    """The logits of all candidates, [C, tasks].

    Args:
        config: The model's settings.
        max_length: What attention's output is divided by.
        weights: A node for each weight, by its name.
        batch: The requests.
        vectors: Nodes: items [n, W], categories [K, W], users [B, W].
        items_per_category: How many items in a row have the same category.
        dropout_key: None to drop nothing.
    """
    items, categories, users = vectors
    requests = range(len(batch.users))
    lengths = np.diff(batch.offsets)
    histories = lengths - batch.targets
    longest = max(lengths, default=0) + 1

    # The row of each padded place among [tokens, users, zero], and what is added to it.
    absent = len(batch.items) + len(batch.users)
    places = np.full((len(batch.users), longest), absent)
    positions, ages = np.zeros_like(places), np.zeros_like(places)
    sees = np.zeros((len(batch.users), longest, longest))
    candidates, times = [], []
    for b in requests:
        first, last = batch.offsets[b], batch.offsets[b + 1]
        now = batch.times[last - 1]
        places[b, 0] = len(batch.items) + b
        ages[b, 0] = age_bucket(now, config)
        sees[b, 0, 0] = 1
        for i in range(lengths[b]):
            row, token = i + 1, first + i
            is_target = i >= histories[b]
            places[b, row] = token
            positions[b, row] = 1 if is_target else histories[b] - i + 1
            ages[b, row] = age_bucket(now - batch.times[token], config)
            sees[b, row, : histories[b] + 1 if is_target else row] = 1
            sees[b, row, row] = 1
            if is_target:
                candidates.append((b, row, token))
                times.append(now)
    positions = np.minimum(positions, config.position_buckets - 1)

    category = batch.items // items_per_category
    tokens = mlp(items, weights, "item") + mlp(categories, weights, "category")[category]
    tokens = tokens + mlp(action_rows(batch, weights, config), weights, "action")
    enough = (histories >= config.min_history_for_user)[:, None]
    user = (users * enough) @ weights["user_kernel"] + weights["user_bias"]
    rows = concatenate([tokens, user, Node(np.zeros((1, config.width)))], 0)
    x = rows[places] * math.sqrt(config.width) + weights["positions"][positions]
    x = x + weights["ages"][ages]
    x = x * masks(config.input_dropout, config.width, batch.users, longest, 0, dropout_key)
    for layer in range(config.layers):
        x = hstu_layer(
            x,
            weights,
            f"layer_{layer}",
            config,
            max_length,
            sees,
            masks(
                config.output_dropout,
                3 * config.heads * config.value_dim,
                *(batch.users, longest, layer + 1, dropout_key),
            ),
        )

    b, row, token = np.array(candidates, int).reshape(-1, 3).T
    user = concatenate([x[b, row], Node(circle(np.array(times, float)))], 1)
    user = user @ weights["time_kernel"] + weights["time_bias"]
    user = norm(user, weights["time_scale"], weights["time_shift"], 1e-5)
    item = mlp(concatenate([items[token], categories[category[token]]], 1), weights, "tower")
    return mlp(user * item, weights, "head", ends_with_norm=False)


def hstu_layer(x, weights, name, config, max_length, sees, mask):
    heads, a, v = config.heads, config.attention_dim, config.value_dim
    normal = norm(x, weights[f"{name}_input_scale"], weights[f"{name}_input_shift"], 1e-6)
    projected = normal @ weights[f"{name}_kernel"] + weights[f"{name}_bias"]

    def part(begin, width):
        """[B, N, H * width] -> [B, H, N, width]."""
        values = projected[:, :, begin : begin + heads * width]
        return values.reshape(*x.shape[:2], heads, width).transpose(0, 2, 1, 3)

    value, query, key = part(heads * v, v), part(2 * heads * v, a), part(heads * (2 * v + a), a)
    products = query @ key.transpose(0, 1, 3, 2) * (1 / math.sqrt(a))
    attention = silu(products) * sees[:, None] @ value * (1 / max_length)
    attention = attention.transpose(0, 2, 1, 3)  # [B, N, H, V]
    scale, shift = weights[f"{name}_scale"], weights[f"{name}_shift"]
    flat = attention.reshape(*x.shape[:2], heads * v)
    if config.group_norm:
        normal = norm(attention, scale.reshape(heads, 1), shift.reshape(heads, 1), 1e-6)
        normal = normal.reshape(*x.shape[:2], heads * v)
    else:
        normal = norm(flat, scale, shift, 1e-6)
    gate = silu(projected[:, :, : heads * v])
    joined = concatenate([gate, flat, gate * normal], 2) * mask
    return x + joined @ weights[f"{name}_output"]


def action_rows(batch, weights, config):
    """Of each token, [n, 40]: the vectors of the bits that are set, or candidates' own."""
    rows = []
    for b in range(len(batch.users)):
        first, last = batch.offsets[b], batch.offsets[b + 1]
        for token in range(first, last):
            if token >= last - batch.targets[b]:
                rows.append(weights["no_action"])
            else:
                bits = [[int(batch.actions[token] & weight > 0)] for weight in ACTIONS]
                rows.append((weights["actions"] * np.array(bits)).reshape(1, -1))
    return concatenate([*rows, Node(np.zeros((0, len(ACTIONS) * config.action_dim)))], 0)


def mlp(x, weights, name, *, ends_with_norm=True):
    hidden = x @ weights[f"{name}_kernel_0"] + weights[f"{name}_bias_0"]
    normal = norm(hidden, weights[f"{name}_scale_0"], weights[f"{name}_shift_0"], 1e-5)
    output = hidden * normal.sigmoid() @ weights[f"{name}_kernel_1"] + weights[f"{name}_bias_1"]
    if not ends_with_norm:
        return output
    return norm(output, weights[f"{name}_scale_1"], weights[f"{name}_shift_1"], 1e-5)


def norm(x, scale, shift, epsilon):
    centred = x + x.mean() * -1
    variance = (centred * centred).mean()
    return centred * (variance + epsilon).power(-0.5) * scale + shift


def silu(x):
    return x * x.sigmoid()


def age_bucket(seconds, config):
    return min(math.isqrt(max(int(seconds), 0) // 60), config.time_buckets)


def circle(times):
    """Cosine and sine of the hour of the day, then of the day of the week: [C, 4]."""
    hour, day = times // 3600 % 24 / 24, times // 86400 % 7 / 7
    angles = 2 * np.pi * np.stack([hour, day], 1)
    return np.stack([np.cos(angles), np.sin(angles)], 2).reshape(-1, 4)


def masks(rate, width, users, longest, layer, dropout_key):
    """The factor on each value, [B, N, width]: 0, or 1 / (1 - rate)."""
    found = np.ones((len(users), longest, width))
    if dropout_key is None:
        return found
    for b, user in enumerate(users):
        for position in range(longest):
            row = split_mix(split_mix(split_mix(int(user)) + dropout_key) + position * GAMMA)
            key = split_mix(row + (layer + 1) * GAMMA)
            low, high = key % 2**32, key >> 32
            row = mix32(low ^ mix32(high))
            for column in range(width):
                kept = mix32((row + column * 0x9E3779B9) % 2**32) >= int(rate * 2**32)
                found[b, position, column] = kept / (1 - rate)
    return found


GAMMA = splitmix64.GAMMA


def split_mix(word):
    """The output function of SplitMix64."""
    word %= 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def mix32(word):
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    return word ^ word >> 16
