"""The settings of a run: one frozen dataclass per section, one field for every flag of `main.py`.

A field carries its help text; `main.py` makes the flags from the fields, and nothing below it reads
a flag. Flags, events and checkpoints see the settings flat, by the flags' names; code takes the
section it needs. The checks here need settings alone, not data, devices or ranks.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

from dlrm.distributed.sharding import BAD_ID_POLICIES
from dlrm.optim.schedule import Schedule, scaled_steps


def flag(
    default: Any, text: str, choices: tuple[str, ...] = (), *, affects_training: bool = True
) -> Any:
    """Declares a field that is a flag.

    Args:
        default: The flag's default.
        text: The flag's help text.
        choices: The values that the flag may take; empty for any of its type.
        affects_training: Whether another value trains another model. A run that resumes with such
            a setting changed says so.
    """
    metadata = {"help": text, "choices": choices, "affects_training": affects_training}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """What the run does, how long, and from which seed."""

    mode: str = flag(
        "train",
        "train; or only evaluate a checkpoint; or measure how fast it answers requests: the "
        "trainer, a SavedModel of it and the scorer",
        ("train", "test", "inference_benchmark"),
        affects_training=False,
    )
    epochs: int = flag(1, "passes over the training data", affects_training=False)
    early_stop: int = flag(-1, "stop after this many steps; -1 disables", affects_training=False)
    seed: int = flag(0, "seed of the initial weights and of the synthetic data")
    stall_timeout: float = flag(
        300.0,
        "abort all ranks after this many seconds without progress; 0 disables the check",
        affects_training=False,
    )
    inference_benchmark_batch_sizes: tuple[int, ...] = flag(
        (1, 64, 4096),
        "samples of a request, for each measurement of --mode=inference_benchmark",
        affects_training=False,
    )
    inference_benchmark_steps: int = flag(
        200, "requests of each of these measurements", affects_training=False
    )

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "inference_benchmark_steps")
        sizes = self.inference_benchmark_batch_sizes
        if not sizes or min(sizes) < 1:
            raise ValueError(
                "expected --inference_benchmark_batch_sizes of integers from 1, such as "
                f"1,64,4096, found {','.join(map(str, sizes)) or 'none'}"
            )
        if self.early_stop != -1 and self.early_stop < 1:
            raise ValueError(
                f"expected --early_stop of 1 or more, or -1 for none, found {self.early_stop}"
            )
        if not 0 <= self.stall_timeout < math.inf:
            raise ValueError(f"expected --stall_timeout of 0 or more, found {self.stall_timeout}")


@dataclass(frozen=True)
class DataConfig:
    """Where the samples come from, and how many make a step."""

    data_dir: Optional[str] = flag(
        None,
        "folder with train/ and test/ as split_bin.py writes them",
        affects_training=False,  # the fingerprints of the data are compared instead
    )
    use_synthetic_dataset: bool = flag(
        False, "train on generated samples with random labels; no --data_dir is needed"
    )
    use_splited_dataset: bool = flag(
        False, "read one file for each categorical feature instead of category.bin"
    )
    global_batch_size: int = flag(65536, "samples in a step, over all ranks")
    verify_data: str = flag(
        "size",
        "what to check before training: nothing, the sizes of the data files, or their content",
        ("off", "size", "full"),
        affects_training=False,
    )

    def __post_init__(self) -> None:
        if not self.data_dir and not self.use_synthetic_dataset:
            raise ValueError("no data: set --data_dir=FOLDER or --use_synthetic_dataset")
        require_positive(self, "global_batch_size")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model, and how its dense part is computed."""

    embedding_dim: int = flag(128, "values in an embedding row")
    bottom_mlp: tuple[int, ...] = flag(
        (512, 256, 128), "units of each layer of the bottom MLP; the last equals --embedding_dim"
    )
    top_mlp: tuple[int, ...] = flag(
        (1024, 1024, 512, 256, 1), "units of each layer of the top MLP; the last is 1, the logit"
    )
    amp: bool = flag(False, "compute in 16 bits and keep the weights in 32 bits")
    amp_dtype: str = flag("float16", "16-bit type of --amp", ("float16", "bfloat16"))
    xla: bool = flag(False, "compile the MLPs and the interaction with XLA")
    custom_interact: bool = flag(
        False, "use the fused interaction op that `make interact_op` builds"
    )

    def __post_init__(self) -> None:
        require_positive(self, "embedding_dim")
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

    @property
    def compute_dtype(self) -> str:
        """The type in which the dense layers compute and vectors are exchanged."""
        return self.amp_dtype if self.amp else "float32"

    @property
    def loss_scale(self) -> float:
        """The factor that keeps small float16 gradients above zero; other types need none."""
        return 1024.0 if self.compute_dtype == "float16" else 1.0

    @property
    def whole_graph_xla(self) -> bool:
        """Whether XLA compiles the dense part as one program.

        It has no fused interaction: with that op, the two MLPs are compiled separately.
        """
        return self.xla and not self.custom_interact


@dataclass(frozen=True)
class EmbeddingConfig:
    """Where the rows of the tables lie, and how they are exchanged."""

    embedding: str = flag(
        "auto",
        "backend of the embedding tables: the project's own all-to-all, SOK's static tables, or "
        "SOK's dynamic hash tables; auto takes sok where it can run, else alltoall",
        ("auto", "alltoall", "sok", "sok_dynamic"),
    )
    sok_gpu_gb: int = flag(
        16,
        "GiB of rows that --embedding=sok_dynamic keeps on each GPU; the others lie on the host",
        affects_training=False,
    )
    compress: bool = flag(False, "send each distinct key of a batch only once")
    bad_ids: str = flag(
        "error",
        "what to do with an id outside its table: stop, take the nearest valid id, or use a zero "
        "vector",
        BAD_ID_POLICIES,
    )

    def __post_init__(self) -> None:
        if self.sok_gpu_gb < 0:
            raise ValueError(f"expected --sok_gpu_gb of 0 or more, found {self.sok_gpu_gb}")


@dataclass(frozen=True)
class OptimizerConfig:
    """Stochastic gradient descent and the schedule of its learning rate."""

    lr: float = flag(24.0, "learning rate after the warm-up")
    warmup_steps: Optional[int] = flag(
        None, "steps of linear warm-up; default: 2750 * 55296 / global batch"
    )
    decay_start_step: Optional[int] = flag(
        None, "step at which the decay begins; default: 49315 * 55296 / global batch"
    )
    decay_steps: Optional[int] = flag(
        None, "steps of quadratic decay to zero; default: 27772 * 55296 / global batch"
    )
    embedding_grad: str = flag(
        "mean",
        "gradient that updates the tables: mean, of the loss averaged over all ranks; sum, of the "
        "ranks' losses added up, as in the SOK benchmark",
        ("mean", "sum"),
    )

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"expected --lr above 0, found {self.lr}")

    def schedule(self, global_batch_size: int) -> Schedule:
        """The learning rate of every step; parts that are not set scale with the global batch.

        Raises:
            ValueError: The parts do not fit together.
        """
        scaled = scaled_steps(global_batch_size)

        def given(value: Optional[int], part: str) -> int:
            return scaled[part] if value is None else value

        return Schedule(
            self.lr,
            given(self.warmup_steps, "warmup"),
            given(self.decay_start_step, "decay_start"),
            given(self.decay_steps, "decay"),
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """When to evaluate, how finely, and which result ends the run."""

    eval_interval: int = flag(3793, "steps between evaluations", affects_training=False)
    eval_in_last: bool = flag(
        False, "evaluate only once, after the last step", affects_training=False
    )
    auc_target: float = flag(
        0.8025, "stop when an evaluation's AUC is above this", affects_training=False
    )
    auc_thresholds: int = flag(
        8000,
        "number of AUC thresholds on the probability scale, and as many again on the logit scale; "
        "with the default, the AUC is exact to 0.0001 or better",
    )

    def __post_init__(self) -> None:
        require_positive(self, "eval_interval")
        if self.auc_thresholds < 2:
            raise ValueError(f"expected --auc_thresholds of 2 or more, found {self.auc_thresholds}")


@dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, and what the run resumes from."""

    checkpoint_dir: Optional[str] = flag(
        None, "folder for checkpoints; if unset, none is written", affects_training=False
    )
    checkpoint_interval: int = flag(
        10000,
        "steps between checkpoints; one more is written at the end, or when a signal stops the run",
        affects_training=False,
    )
    keep_checkpoints: int = flag(
        2, "number of most recent checkpoints to keep", affects_training=False
    )
    resume: str = flag(
        "auto",
        "checkpoint to resume from: auto (the newest intact one in --checkpoint_dir, if any), "
        "none, or a path",
        affects_training=False,
    )
    ignore_data_change: bool = flag(
        False,
        "resume even if the data is not what the checkpoint was trained on",
        affects_training=False,
    )

    def __post_init__(self) -> None:
        require_positive(self, "checkpoint_interval", "keep_checkpoints")


@dataclass(frozen=True)
class ReportConfig:
    """What the run prints and records."""

    run_dir: Optional[str] = flag(
        None,
        "folder for the event log, TensorBoard files, plot and results table",
        affects_training=False,
    )
    log_interval: int = flag(1000, "steps between console lines", affects_training=False)

    def __post_init__(self) -> None:
        require_positive(self, "log_interval")


@dataclass(frozen=True)
class Config:
    """All settings of a run, by section.

    Raises:
        ValueError: Settings make no sense or do not fit together; the message names the remedy.
    """

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    embedding: EmbeddingConfig
    optimizer: OptimizerConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    report: ReportConfig

    def __post_init__(self) -> None:
        checkpoint = self.checkpoint
        named = checkpoint.checkpoint_dir or checkpoint.resume not in ("auto", "none")
        if self.run.mode != "train" and not named:
            raise ValueError(
                f"--mode={self.run.mode}: no checkpoint named; set --checkpoint_dir=FOLDER or "
                "--resume=PATH"
            )
        self.optimizer.schedule(self.data.global_batch_size)  # checked before anything is built

    @classmethod
    def of(cls, **settings: Any) -> Config:
        """Builds the sections from flat settings; those that are not given keep their defaults.

        Args:
            settings: Values by the flags' names.

        Raises:
            TypeError: There is no such setting.
            ValueError: As for `Config`.
        """
        unknown = settings.keys() - {setting.name for setting in SETTINGS}
        if unknown:
            raise TypeError(f"expected names of settings, found {', '.join(sorted(unknown))}")
        given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for setting in SETTINGS:
            if setting.name in settings:
                given[setting.section][setting.name] = settings[setting.name]
        return cls(**{section: SECTIONS[section](**given[section]) for section in SECTIONS})

    def flat(self) -> dict[str, Any]:
        """All settings by their flags' names, as events and checkpoints record them."""
        return {
            setting.name: getattr(getattr(self, setting.section), setting.name)
            for setting in SETTINGS
        }

    def replace(self, **settings: Any) -> Config:
        """A copy in which the given flat settings are changed."""
        return Config.of(**{**self.flat(), **settings})


@dataclass(frozen=True)
class Setting:
    """One field of a section, which is one flag.

    Attributes:
        section: The attribute of `Config` that holds the section.
        name: The field and the flag.
        type: The field's type.
        default: The flag's default.
        help: The flag's help text.
        choices: The values that it may take; empty for any of its type.
        affects_training: Whether another value trains another model.
    """

    section: str
    name: str
    type: Any
    default: Any
    help: str
    choices: tuple[str, ...]
    affects_training: bool


def require_positive(section: Any, *names: str) -> None:
    """Checks that the named fields are 1 or more.

    Raises:
        ValueError: A field is less than 1; the message names the first such field.
    """
    for name in names:
        if getattr(section, name) < 1:
            raise ValueError(f"expected --{name} of 1 or more, found {getattr(section, name)}")


def _settings() -> Iterator[Setting]:
    for section, kind in SECTIONS.items():
        types = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield Setting(section, field.name, types[field.name], field.default, **field.metadata)


SECTIONS: dict[str, Any] = typing.get_type_hints(Config)
SETTINGS: tuple[Setting, ...] = tuple(_settings())
