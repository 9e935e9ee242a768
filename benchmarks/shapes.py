"""The sizes of models and tables that benchmarks measure, and synthetic samples of these sizes.

It imports no TensorFlow: ingest and the readers are measured with the same vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dlrm.config import Config
from dlrm.config.data import SYNTHETIC_NUM_DENSE, SYNTHETIC_VOCAB_SIZES
from dlrm.data import Batches, Data, SyntheticSource
from dlrm.formats.packed_ids import MLPERF_VOCAB_SIZES
from preprocess.synthetic import DEFAULT_VOCAB_SIZES

__all__ = [
    "CASES",
    "DEMO",
    "FUSED",
    "KAGGLE_VOCAB_SIZES",
    "MLPERF_VOCAB_SIZES",
    "NUM_DENSE",
    "SHAPES",
    "Shape",
]

NUM_DENSE = SYNTHETIC_NUM_DENSE
FUSED = {"custom_interact": True, "custom_mlp": True}  # the switches of every preset
# The published table sizes of Criteo Kaggle under the dlrm rules.
KAGGLE_VOCAB_SIZES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model and its tables.

    Attributes:
        title: The name that is printed.
        vocab_sizes: Number of rows of each table.
        model: Settings of the model that differ from the defaults of the flags.
    """

    title: str
    vocab_sizes: tuple[int, ...]
    model: dict[str, Any] = field(default_factory=dict)

    def config(self, global_batch: int, **settings: Any) -> Config:
        """Returns the configuration of a run.

        Args:
            global_batch: Number of samples of a step, over all ranks.
            **settings: Further flags of main.py and their values.
        """
        return Config.of(
            use_synthetic_dataset=True,
            global_batch_size=global_batch,
            lr=0.1,
            **{"log_interval": 1, **self.model, **settings},
        )

    def data(self, global_batch: int, steps: int, rank: int, size: int) -> Data:
        """Returns one rank's synthetic batches for the given number of steps."""
        source = SyntheticSource(self.vocab_sizes, NUM_DENSE, steps * global_batch, seed=0)
        batches = Batches(source, global_batch, rank, size, drop_remainder=True)
        return Data(batches, batches, NUM_DENSE, self.vocab_sizes, {})


SHAPES = {
    # MLPerf's own tables have 188 M rows, 96 GB, and lookups in them miss more caches.
    "mlperf_mlps": Shape("MLPerf's MLPs, synthetic tables (1.2 M rows)", SYNTHETIC_VOCAB_SIZES),
    "kaggle": Shape(
        "Criteo Kaggle (33.8 M rows)",
        KAGGLE_VOCAB_SIZES,
        {"embedding_dim": 16, "bottom_mlp": (512, 256, 64, 16), "top_mlp": (512, 256, 1)},
    ),
}
# The model of `make train`; benchmarks that are not told a shape measure the larger ones.
DEMO = Shape(
    "the model of make train (19,588 rows)",
    DEFAULT_VOCAB_SIZES,
    {"embedding_dim": 16, "bottom_mlp": (64, 32, 16), "top_mlp": (128, 64, 1)},
)
CASES = {"demo": DEMO, **SHAPES}
