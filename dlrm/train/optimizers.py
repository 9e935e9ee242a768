"""The optimizers of a run; only here do settings choose them."""

from __future__ import annotations

from dlrm.config import OptimizerConfig
from dlrm.optim.dense_optimizers import DenseOptimizer, DenseSGD
from dlrm.optim.row_optimizers import RowOptimizer, RowSGD


def row_optimizer(config: OptimizerConfig) -> RowOptimizer:
    """A new optimizer for the embedding tables."""
    return RowSGD()


def dense_optimizer(config: OptimizerConfig) -> DenseOptimizer:
    """A new optimizer for the dense layers."""
    return DenseSGD()
