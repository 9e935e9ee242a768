"""The sections that say what is trained: the model and its tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from dlrm.config.setting import flag, require_positive
from dlrm.distributed.sharding import BAD_ID_POLICIES
from dlrm.layers.interaction_shape import DCNV2, DOT, INTERACTIONS, InteractionShape


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model, and how its dense part is computed."""

    embedding_dim: int = flag(128, "values in an embedding row")
    bottom_mlp: tuple[int, ...] = flag(
        (512, 256, 128),
        "units of each layer of the bottom MLP; the last equals --embedding_dim",
        aliases=("bottom_mlp_sizes",),
    )
    top_mlp: tuple[int, ...] = flag(
        (1024, 1024, 512, 256, 1),
        "units of each layer of the top MLP; the last is 1, the logit",
        aliases=("top_mlp_sizes",),
    )
    interaction: str = flag(
        DOT,
        "what combines the bottom output and the vectors for the top MLP: the dot products of all "
        "pairs, DCNv2's cross layers over all of them, their sum, or all one behind the other",
        INTERACTIONS,
    )
    cross_layers: int = flag(3, "cross layers of --interaction=dcnv2")
    cross_rank: int = flag(
        512, "rank of the matrices of a cross layer: values between its two products"
    )
    amp: bool = flag(False, "compute in 16 bits and keep the weights in 32 bits")
    amp_dtype: str = flag("float16", "16-bit type of --amp", ("float16", "bfloat16"))
    loss_scale: Optional[float] = flag(
        None,
        "factor on the loss while gradients are computed, which is divided out again; default: "
        "1024 with float16, else 1",
    )
    xla: bool = flag(False, "compile the MLPs and the interaction with XLA")
    custom_interact: bool = flag(
        False, "use the fused interaction op that `make interact_op` builds"
    )
    custom_mlp: bool = flag(
        False,
        "use the fused MLP op that `make cpu_ops` builds, for float32 on CPUs; GPUs and --amp keep "
        "the MLPs of TensorFlow",
    )

    def __post_init__(self) -> None:
        require_positive(self, "embedding_dim", "cross_layers", "cross_rank")
        if self.custom_interact and self.interaction != DOT:
            raise ValueError(
                "--custom_interact is the fused dot interaction: expected --interaction=dot, found "
                f"--interaction={self.interaction}; leave --custom_interact out"
            )
        if not self.bottom_mlp or self.bottom_mlp[-1] != self.embedding_dim:
            raise ValueError(
                "the last layer of --bottom_mlp meets the embedding rows in the interaction: "
                f"expected {self.embedding_dim} units (--embedding_dim), found {self.bottom_mlp}"
            )
        if not self.top_mlp or self.top_mlp[-1] != 1:
            raise ValueError(
                f"the last layer of --top_mlp is the logit: expected 1 unit, found {self.top_mlp}"
            )
        if min(self.bottom_mlp + self.top_mlp) < 1:
            raise ValueError("expected --bottom_mlp and --top_mlp of positive integers")
        if self.loss_scale is not None and not 0 < self.loss_scale < math.inf:
            raise ValueError(f"expected --loss_scale above 0, found {self.loss_scale}")

    @property
    def interaction_shape(self) -> InteractionShape:
        """The interaction as code below takes it: without cross layers unless it is `dcnv2`."""
        if self.interaction != DCNV2:
            return InteractionShape(self.interaction)
        return InteractionShape(DCNV2, self.cross_layers, self.cross_rank)

    @property
    def compute_dtype(self) -> str:
        """The type in which the dense layers compute and vectors are exchanged."""
        return self.amp_dtype if self.amp else "float32"

    @property
    def loss_factor(self) -> float:
        """The factor that keeps small float16 gradients above zero; other types need none."""
        if self.loss_scale is not None:
            return self.loss_scale
        return 1024.0 if self.compute_dtype == "float16" else 1.0

    @property
    def whole_graph_xla(self) -> bool:
        """Whether XLA compiles the dense part as one program.

        It has no fused operations: with one of these, the two MLPs are compiled separately.
        """
        return self.xla and not self.custom_interact and not self.custom_mlp

    @property
    def fuses_mlps_on_cpus(self) -> bool:
        """Whether the fused MLP op computes the MLPs where there is no GPU."""
        return self.custom_mlp and self.compute_dtype == "float32"


@dataclass(frozen=True)
class EmbeddingConfig:
    """Where the rows of the tables lie, and how they are exchanged."""

    embedding: str = flag(
        "auto",
        "backend of the embedding tables: the project's own all-to-all with a row for every id, or "
        "dynamic, with rows for those ids alone that occur; SOK's static tables, or SOK's dynamic "
        "hash tables; auto takes sok where it can run, else alltoall",
        ("auto", "alltoall", "dynamic", "sok", "sok_dynamic"),
    )
    admit_after: int = flag(
        0,
        "with --embedding=dynamic: an id has the shared row of its table until this many global "
        "batches have held it, then a row of its own",
    )
    evict_after: int = flag(
        0,
        "with --embedding=dynamic: number of steps without an id after which its row is dropped, "
        "and the id begins anew; 0 keeps all",
    )
    sok_gpu_gb: int = flag(
        16,
        "GiB of rows that --embedding=sok_dynamic keeps on each GPU; the others lie on the host",
        affects_training=False,
    )
    sok_rows: int = flag(
        0,
        "with --embedding=sok_dynamic: rows of those ids alone that occur, and room for this many "
        "on each rank; 0: room for all ids",
    )
    compress: bool = flag(False, "send each distinct key of a batch only once")
    bad_ids: str = flag(
        "error",
        "what to do with an id outside its table: stop, take the nearest valid id, use a zero "
        "vector, or take the id modulo the table's size",
        BAD_ID_POLICIES,
    )
    max_table_size: Optional[int] = flag(
        None,
        "most rows of a table; ids beyond are what --bad_ids makes of them, usually modulo",
        affects_training=False,  # a model of other tables is another one
    )

    def __post_init__(self) -> None:
        if self.sok_gpu_gb < 0:
            raise ValueError(f"expected --sok_gpu_gb of 0 or more, found {self.sok_gpu_gb}")
        if not 0 <= self.sok_rows <= 2**40:
            raise ValueError(f"expected --sok_rows of 0 to 2^40, found {self.sok_rows}")
        if self.sok_rows and self.embedding != "sok_dynamic":
            raise ValueError(
                "--sok_rows is the room in SOK's hash tables: expected --embedding=sok_dynamic, "
                f"found --embedding={self.embedding}; set that, or leave --sok_rows out"
            )
        for name in ("admit_after", "evict_after"):
            steps = getattr(self, name)
            if not 0 <= steps < 2**31:
                raise ValueError(f"expected --{name} of 0 to 2^31 - 1 steps, found {steps}")
            if steps and self.embedding != "dynamic":
                raise ValueError(
                    f"--{name} is for rows that come and go: expected --embedding=dynamic, found "
                    f"--embedding={self.embedding}; set that, or leave --{name} out"
                )
        if self.max_table_size is None:
            return
        require_positive(self, "max_table_size")
        if self.bad_ids == "error":
            raise ValueError(
                "--max_table_size leaves ids outside their table; say what becomes of them: set "
                "--bad_ids=modulo, clip or zero"
            )

    @property
    def keeps_occurring_ids(self) -> bool:
        """Whether only ids that occur have rows."""
        return self.embedding == "dynamic" or self.sok_rows > 0
