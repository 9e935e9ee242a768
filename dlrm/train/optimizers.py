"""The optimizers of a run; only here do settings choose them."""

from __future__ import annotations

from typing import Callable

from dlrm.config import OptimizerConfig
from dlrm.optim.adaptive_dense import DenseAdagrad, DenseAdam, DenseFtrl
from dlrm.optim.adaptive_rows import RowAdagrad, RowAdam, RowFtrl, RowWiseAdagrad
from dlrm.optim.dense_optimizers import DenseMomentum, DenseOptimizer, DenseSGD, DenseWeightDecay
from dlrm.optim.row_optimizers import RowMomentum, RowOptimizer, RowSGD, RowWeightDecay

ROW_OPTIMIZERS: dict[str, Callable[[OptimizerConfig], RowOptimizer]] = {
    "sgd": lambda config: RowSGD(),
    "momentum": lambda config: RowMomentum(config.momentum),
    "adagrad": lambda config: RowAdagrad(config.epsilon, config.initial_sum("adagrad")),
    "rowwise_adagrad": lambda config: RowWiseAdagrad(
        config.epsilon, config.initial_sum("rowwise_adagrad")
    ),
    "adam": lambda config: RowAdam((config.beta1, config.beta2), config.epsilon),
    "ftrl": lambda config: RowFtrl(
        config.lr * config.ftrl_l1, config.lr * config.ftrl_l2, config.initial_sum("ftrl")
    ),
}
DENSE_OPTIMIZERS: dict[str, Callable[[OptimizerConfig], DenseOptimizer]] = {
    "sgd": lambda config: DenseSGD(),
    "momentum": lambda config: DenseMomentum(config.momentum),
    "adagrad": lambda config: DenseAdagrad(config.epsilon, config.initial_sum("adagrad")),
    "adam": lambda config: DenseAdam((config.beta1, config.beta2), config.epsilon),
    "ftrl": lambda config: DenseFtrl(
        config.rate_of_dense * config.ftrl_l1,
        config.rate_of_dense * config.ftrl_l2,
        config.initial_sum("ftrl"),
    ),
}
# Values that a dense optimizer keeps for each weight.
DENSE_STATE = {"sgd": 0, "momentum": 1, "adagrad": 1, "adam": 2, "ftrl": 2}


def row_optimizer(config: OptimizerConfig) -> RowOptimizer:
    """A new optimizer for the embedding tables."""
    optimizer = ROW_OPTIMIZERS[config.optimizer](config)
    return RowWeightDecay(optimizer, config.weight_decay) if config.weight_decay else optimizer


def dense_optimizer(config: OptimizerConfig) -> DenseOptimizer:
    """A new optimizer for the dense layers."""
    optimizer, decay = DENSE_OPTIMIZERS[config.dense_optimizer](config), config.decay_of_dense
    return DenseWeightDecay(optimizer, decay) if decay else optimizer
