"""The bytes that a rank sends, beside what its exchanges were really given."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dlrm import embedding
from dlrm.embedding import FusedTable, Traffic
from dlrm.embedding.traffic import all_reduce_bytes
from tests.support.thread_ranks import ThreadCollective, on_ranks

VOCAB_SIZES, WIDTH, BATCH, RANKS = (40, 3, 900), 4, 16, 3
DTYPE_BYTES = {"float32": 4, "float16": 2}


def watch(collective: ThreadCollective) -> dict[str, int]:
    """The bytes that the collective's exchanges send to other ranks, by the exchange's name."""
    sent: dict[str, int] = {}
    exchange = collective.alltoall

    def counted(tensor, splits, name):
        parts = tf.split(tensor, splits.numpy())
        others = [part.numpy().nbytes for rank, part in enumerate(parts) if rank != collective.rank]
        kind = name.partition(".")[0]
        sent[kind] = sent.get(kind, 0) + sum(others)
        return exchange(tensor, splits, name)

    collective.alltoall = counted  # type: ignore[method-assign]
    return sent


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_counts_what_the_exchanges_send(compress, dtype):
    rng = np.random.default_rng(2)
    # Skewed, so that ranks send and receive different amounts.
    ids = (rng.random([RANKS, BATCH, 3]) ** 4 * VOCAB_SIZES).astype(np.int32)

    def on_rank(collective):
        sent = watch(collective)
        tables = embedding.create(
            "alltoall",
            FusedTable(VOCAB_SIZES, WIDTH, seed=1),
            collective,
            compress=compress,
            exchange_dtype=dtype,
            table_groups=2,
        )
        routes = tables.route(tf.constant(ids[collective.rank]))
        lookup = tables.lookup(routes)
        tables.update(lookup, lookup.vectors, tf.constant(0.1))
        return sent, tables.traffic(routes)

    for sent, traffic in on_ranks(RANKS, on_rank):
        assert traffic == Traffic(sent["keys"], sent["vectors"], sent["gradients"])
        assert traffic.vectors != traffic.gradients
        assert traffic.total == sum(sent.values())


def test_counts_every_key_and_vector_once_over_all_ranks():
    """By hand: rank 0 asks rank 1 for three keys, rank 1 asks rank 0 for one."""
    ids = {0: [[1], [3], [5], [0]], 1: [[1], [2], [7], [9]]}

    def on_rank(collective):
        tables = embedding.create("alltoall", FusedTable((10,), WIDTH, seed=1), collective)
        return tables.traffic(tables.route(tf.constant(ids[collective.rank], tf.int32)))

    row = 4 * WIDTH
    assert on_ranks(2, on_rank) == [Traffic(12, row, 3 * row), Traffic(4, 3 * row, row)]


def test_a_rank_alone_sends_nothing():
    from dlrm.distributed.collective import Collective

    tables = embedding.create("alltoall", FusedTable((10,), WIDTH, seed=1), Collective())
    assert tables.traffic(tables.route(tf.constant([[1], [2]]))) == Traffic(0, 0, 0)


def test_an_all_reduce_sends_each_part_twice_to_all_others():
    assert [all_reduce_bytes(1200, size) for size in (1, 2, 3, 4)] == [0, 1200, 1600, 1800]
