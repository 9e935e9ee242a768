"""A batch of requests as the model takes it, with the indices that the host is quickest to make.

NumPy alone. Which embedding vectors belong to the ids is for the caller to say.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm_v3.data.batch import RequestBatch


class ModelInputs(NamedTuple):
    """Requests of one timestamp: B of them, with n tokens, of which C are candidates.

    Arrays or tensors. Tokens behind the last request are padding.

    Attributes:
        users: int32 [B], ids.
        items: int32 [n], ids.
        categories: int32 [n], the items' categories.
        actions: int32 [n], the weight of an event of the history.
        times: int64 [n], seconds.
        requests: int32 [n], the request that a token belongs to; the last one for padding.
        offsets: int32 [B + 1], where each request's tokens begin, and the end.
        targets: int32 [B], how many of a request's last tokens are candidates.
        target_tokens: int32 [C], which tokens are candidates.
        request_times: int64 [B], when the request is made.
        history_rows: int32 [n + B - C], which of the model's rows are no candidates. A request has
            one row for its user, then those of its tokens.
        target_rows: int32 [C], which of the model's rows are candidates.
    """

    users: Any
    items: Any
    categories: Any
    actions: Any
    times: Any
    requests: Any
    offsets: Any
    targets: Any
    target_tokens: Any
    request_times: Any
    history_rows: Any
    target_rows: Any


class TargetInputs(NamedTuple):
    """Candidates apart from their history: C of them, of B requests.

    Attributes:
        items: int32 [C], ids.
        categories: int32 [C], the items' categories.
        requests: int32 [C], the request that a candidate belongs to.
        offsets: int32 [B + 1], where each request's candidates begin, and the end.
    """

    items: Any
    categories: Any
    requests: Any
    offsets: Any


class Vectors(NamedTuple):
    """The embedding vectors of a batch, float tensors of W values a row.

    Attributes:
        items: [n, W], of the tokens; [C, W] where candidates stand apart.
        categories: [K, W], of all K categories in order.
        users: [B, W], of the users.
    """

    items: Any
    categories: Any
    users: Any


def make_inputs(batch: RequestBatch, items_per_category: int, multiple: int = 1) -> ModelInputs:
    """Prepares a batch whose requests all have candidates, which carry the request's time.

    Args:
        batch: The requests.
        items_per_category: How many items in a row have the same category.
        multiple: The number of tokens is padded to a multiple of it, so that XLA, which compiles
            for every shape, meets few of them.
    """
    tokens, requests = len(batch.items), len(batch.users)
    padding = (0, -tokens % multiple)
    request = np.repeat(np.arange(requests, dtype=np.int32), np.diff(batch.offsets))
    items = np.pad(batch.items, padding)
    target_tokens = np.flatnonzero(_is_target(batch)).astype(np.int32)
    target_rows = target_tokens + request[target_tokens] + np.int32(1)
    rows = np.arange(len(items) + requests, dtype=np.int32)
    return ModelInputs(
        users=batch.users,
        items=items,
        categories=items // np.int32(items_per_category),
        actions=np.pad(batch.actions, padding),
        times=np.pad(batch.times, padding),
        requests=np.pad(request, padding, constant_values=max(requests - 1, 0)),
        offsets=batch.offsets,
        targets=batch.targets,
        target_tokens=target_tokens,
        request_times=batch.times[batch.offsets[1:] - 1],
        history_rows=np.delete(rows, target_rows),
        target_rows=target_rows,
    )


def split_inputs(batch: RequestBatch, items_per_category: int) -> tuple[ModelInputs, TargetInputs]:
    """Prepares a batch as histories, which are encoded once, and their candidates."""
    is_target = _is_target(batch)
    inputs = make_inputs(batch, items_per_category)
    offsets = np.append(0, np.cumsum(batch.targets)).astype(np.int32)
    targets = TargetInputs(
        items=inputs.items[is_target],
        categories=inputs.categories[is_target],
        requests=inputs.requests[is_target],
        offsets=offsets,
    )
    by_token = ("items", "categories", "actions", "times", "requests")
    histories = inputs._replace(
        **{name: getattr(inputs, name)[~is_target] for name in by_token},
        offsets=batch.offsets - offsets,
        targets=np.zeros_like(batch.targets),
        target_tokens=np.empty(0, np.int32),
        history_rows=np.arange(len(inputs.history_rows), dtype=np.int32),
        target_rows=np.empty(0, np.int32),
    )
    return histories, targets


def cut_targets(targets: TargetInputs, begin: int, end: int) -> TargetInputs:
    """Takes candidates [begin, end) of all; the requests stay, also those left without any."""
    return TargetInputs(
        items=targets.items[begin:end],
        categories=targets.categories[begin:end],
        requests=targets.requests[begin:end],
        offsets=np.clip(targets.offsets, begin, end) - np.int32(begin),
    )


def _is_target(batch: RequestBatch) -> NDArray[np.bool_]:
    """Which tokens are candidates, [n]."""
    ends = np.repeat(batch.offsets[1:] - batch.targets, np.diff(batch.offsets))
    return np.arange(len(batch.items)) >= ends
