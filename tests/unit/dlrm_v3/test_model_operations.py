"""The count of operations against the products that the model really computes."""

from __future__ import annotations

import pytest
import tensorflow as tf

from dlrm_v3.config import PRESETS
from dlrm_v3.model.operations import count_operations
from tests.support import hstu_batches

CONFIG = hstu_batches.CONFIG


def test_the_count_is_that_of_the_graphs_products() -> None:
    """All products with weights are MatMul operations, with sizes that the graph knows."""
    histories, targets = [5, 0, 7], [2, 3, 1]
    inputs, vectors = hstu_batches.inputs_and_vectors(hstu_batches.random_batch(histories, targets))
    model = hstu_batches.random_model()
    graph = tf.function(lambda: model(inputs, vectors)).get_concrete_function().graph
    found = 0
    for operation in graph.get_operations():
        if operation.type == "MatMul":
            rows, inner = operation.inputs[0].shape
            assert rows is not None
            found += 2 * rows * inner * operation.inputs[1].shape[1]
    counts = count_operations(CONFIG, histories, targets)
    # Categories' rows are no tokens: there are few of them.
    of_categories = 2 * hstu_batches.CATEGORIES * 2 * CONFIG.width * CONFIG.hidden
    assert found - of_categories == counts.total - counts.attention


def test_attention_counts_the_pairs_that_see_each_other() -> None:
    pairs = 0
    for history, targets in ((5, 2), (0, 3)):
        rows = 1 + history + targets
        for row in range(rows):
            for column in range(rows):
                sees = column == row or (column < row and column <= history)
                of_target = row > history
                pairs += sees * (CONFIG.layers if of_target else CONFIG.layers - 1)
    counts = count_operations(CONFIG, [5, 0], [2, 3])
    assert counts.attention == pairs * 2 * CONFIG.heads * (CONFIG.attention_dim + CONFIG.value_dim)


@pytest.mark.parametrize(
    ("length", "attention", "projections"), [(2000, 4.1e9, 7.3e9), (16_384, 275e9, 60e9)]
)
def test_a_layer_of_the_published_size_costs_what_is_known(length, attention, projections) -> None:
    """Per user and layer: length^2 * 1024 operations of attention, length * 512 * 3584 * 2."""
    counts = count_operations(PRESETS["streaming-100b"].model, [length], [0])
    assert counts.attention / 4 == pytest.approx(attention, rel=0.01)  # of five, the last has none
    keys_and_values = 2 * (length + 1) * 512 * 1024
    assert (counts.projections - keys_and_values) / 4 == pytest.approx(projections, rel=0.01)
