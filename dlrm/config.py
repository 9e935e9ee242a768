"""The settings of a run: one frozen dataclass, a field for every flag of `main.py`.

Each field carries its own help text; `main.py` makes the flags from the fields, and nothing below
it reads a flag. Checks here need the settings alone, not data, devices or ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Optional

from dlrm.optim.schedule import Schedule, scaled_steps


def setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A field with its flag's help text and, for an enumeration, the values it may take."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Config:
    """Everything a run is told. Field by field, the flags of `main.py`.

    Raises:
        ValueError: settings that cannot go together, with the remedy.
    """

    # What to do
    mode: str = setting("train", "train, or evaluate a checkpoint and end", ("train", "test"))

    # Data
    data_dir: Optional[str] = setting(None, "folder with train/ and test/ as split_bin.py writes")
    use_synthetic_dataset: bool = setting(False, "made-up samples; needs no --data_dir")
    use_splited_dataset: bool = setting(False, "one file a category instead of category.bin")
    global_batch_size: int = setting(65536, "samples in a step over all ranks")
    verify_data: str = setting(
        "size",
        "before training, check nothing, the sizes of the data files, or all they hold",
        ("off", "size", "full"),
    )
    bad_ids: str = setting(
        "error",
        "an id outside its table: stop, take the nearest id, or a zero vector",
        ("error", "clip", "zero"),
    )

    # Model
    embedding_dim: int = setting(128, "values in an embedding row")
    bottom_mlp: tuple[int, ...] = setting((512, 256, 128), "units of the bottom MLP's layers")
    top_mlp: tuple[int, ...] = setting(
        (1024, 1024, 512, 256, 1), "units of the top MLP's layers; the last is the logit"
    )
    seed: int = setting(0, "decides every initial weight and the synthetic data")

    # Speed
    amp: bool = setting(False, "16-bit compute, 32-bit variables")
    amp_dtype: str = setting("float16", "the type of --amp", ("float16", "bfloat16"))
    xla: bool = setting(False, "compile the MLPs and the interaction with XLA")
    compress: bool = setting(False, "send each distinct key of a batch once")
    custom_interact: bool = setting(
        False, "the fused interaction op, which `make interact_op` builds"
    )
    embedding: str = setting(
        "auto",
        "backend of the tables: our own all-to-all, SOK's tables, or SOK's hash tables that grow",
        ("auto", "alltoall", "sok", "sok_dynamic"),
    )
    sok_gpu_gb: int = setting(
        16, "GiB of rows that --embedding=sok_dynamic keeps on the GPU; the host has the others"
    )

    # Learning
    lr: float = setting(24.0, "learning rate of the plateau")
    warmup_steps: Optional[int] = setting(None, "default: 2750 * 55296 / global batch")
    decay_start_step: Optional[int] = setting(None, "default: 49315 * 55296 / global batch")
    decay_steps: Optional[int] = setting(None, "default: 27772 * 55296 / global batch")
    embedding_grad: str = setting(
        "mean",
        "tables follow the gradient of the global mean loss, or the sum over ranks of their "
        "local means as the SOK benchmark did",
        ("mean", "sum"),
    )

    # Length of the run
    epochs: int = setting(1, "passes over the training data")
    early_stop: int = setting(-1, "end after so many steps; -1: do not")
    eval_interval: int = setting(3793, "steps between evaluations")
    eval_in_last: bool = setting(False, "evaluate once, after the last step, and only then")
    auc_target: float = setting(0.8025, "end when an evaluation's AUC is above this")
    auc_thresholds: int = setting(8000, "resolution of the AUC; 0.0001 or better at the default")

    # Checkpoints
    checkpoint_dir: Optional[str] = setting(None, "folder for checkpoints; unset: none is written")
    checkpoint_interval: int = setting(
        10000, "steps between checkpoints; one more is written at the end or when asked to stop"
    )
    keep_checkpoints: int = setting(2, "so many of the newest stay")
    resume: str = setting(
        "auto",
        "the checkpoint to begin with: auto (the newest whole one in --checkpoint_dir, if there is "
        "one), none, or a path",
    )
    ignore_data_change: bool = setting(False, "resume also on other data than the checkpoint's")
    stall_timeout: float = setting(
        300.0, "seconds without any progress after which the ranks end; 0: never"
    )

    # Reports
    run_dir: Optional[str] = setting(None, "folder for events, TensorBoard, plot and table")
    log_interval: int = setting(1000, "steps between console lines")

    def __post_init__(self) -> None:
        if not self.data_dir and not self.use_synthetic_dataset:
            raise ValueError("no data: set --data_dir=FOLDER or --use_synthetic_dataset")
        for name in (
            "global_batch_size",
            "embedding_dim",
            "epochs",
            "eval_interval",
            "log_interval",
            "checkpoint_interval",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"expected --{name} of 1 or more, found {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"expected --lr above 0, found {self.lr}")
        if self.sok_gpu_gb < 0:
            raise ValueError(f"expected --sok_gpu_gb of 0 or more, found {self.sok_gpu_gb}")
        if self.early_stop != -1 and self.early_stop < 1:
            raise ValueError(
                f"expected --early_stop of 1 or more, or -1 for none, found {self.early_stop}"
            )
        if not 0 <= self.stall_timeout < math.inf:
            raise ValueError(f"expected --stall_timeout of 0 or more, found {self.stall_timeout}")
        if self.mode == "test" and not self.checkpoint_dir and self.resume in ("auto", "none"):
            raise ValueError(
                "--mode=test: no checkpoint named; set --checkpoint_dir=FOLDER or --resume=PATH"
            )
        if self.auc_thresholds < 2:
            raise ValueError(f"expected --auc_thresholds of 2 or more, found {self.auc_thresholds}")
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
        self.schedule  # noqa: B018 - its own checks run here, before anything is built

    @property
    def schedule(self) -> Schedule:
        """The learning rate's schedule, unset parts scaled with the global batch."""
        scaled = scaled_steps(self.global_batch_size)

        def given(value: Optional[int], part: str) -> int:
            return scaled[part] if value is None else value

        return Schedule(
            self.lr,
            given(self.warmup_steps, "warmup"),
            given(self.decay_start_step, "decay_start"),
            given(self.decay_steps, "decay"),
        )

    @property
    def compute_dtype(self) -> str:
        """The type of the dense layers' arithmetic and of vectors on their way."""
        return self.amp_dtype if self.amp else "float32"

    @property
    def loss_scale(self) -> float:
        """Keeps small float16 gradients above zero; other types need none."""
        return 1024.0 if self.compute_dtype == "float16" else 1.0
