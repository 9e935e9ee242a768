"""The settings of a training: what it reads, trains, evaluates and writes, beside the presets.

Plain data and their flags; no files, tensors or ranks.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlrm import cli
from dlrm.config import TrackingConfig
from dlrm_v3.config import PRESETS, HstuConfig, LearningConfig, StreamConfig
from dlrm_v3.flags import add_flags, given_values

BACKENDS = ("auto", "alltoall", "sok", "sok_dynamic")
NOT_OF_THE_MODEL = frozenset(
    {
        *("data_dir", "mode", "first_timestamp", "last_timestamp", "early_stop", "stall_timeout"),
        *("sok_gpu_gb", "checkpoint_dir", "checkpoint_timestamps", "keep_checkpoints", "resume"),
        *("ignore_data_change", "run_dir", "log_interval", "metrics_port", "mlflow"),
        "eval_batches",
    }
)
"""Settings of which another value does not train another model."""


@dataclass(frozen=True)
class StreamTraining:
    """All settings of a run of `python3 -m dlrm_v3.train`.

    Attributes:
        model: The shape of the model.
        learning: How the model is trained.
        options: The flags of the run itself, by name.
    """

    model: HstuConfig
    learning: LearningConfig
    options: argparse.Namespace

    def flat(self) -> dict[str, Any]:
        """All settings by their flags' names, as events and checkpoints record them."""
        return {
            **dataclasses.asdict(self.model),
            **dataclasses.asdict(self.learning),
            **vars(self.options),
        }

    def pinned(self) -> list[str]:
        """Settings that must be a checkpoint's: of the model and, to train on, of the steps."""
        free = {"input_dropout", "output_dropout", "task_weight", "table_range", "user_rows"}
        names = set(dataclasses.asdict(self.model)) - free | {"max_length"}
        if self.trains:
            names |= {"global_batch_size", "first_timestamp", "seed"}
        return sorted(names)

    @property
    def trains(self) -> bool:
        """Whether the run trains; else it evaluates a checkpoint."""
        return bool(self.options.mode == "train")

    @property
    def compute_dtype(self) -> str:
        """The type in which the model computes and vectors are exchanged."""
        return str(self.options.amp_dtype) if self.options.amp else "float32"

    @property
    def loss_scale(self) -> float:
        """The factor that keeps small float16 gradients above zero; other types need none."""
        return 1024.0 if self.compute_dtype == "float16" else 1.0


def max_length(model: HstuConfig, stream: StreamConfig) -> int:
    """Most tokens of a training request: the user, the history and the candidates."""
    return 1 + model.max_history + stream.candidates


def parser() -> cli.Parser:
    """The flags of a run."""
    made = cli.Parser(
        prog="python3 -m dlrm_v3.train",
        description="Train HSTU on streaming data: predict each timestamp, then train on it.",
    )
    add = made.add_argument
    add("--data_dir", required=True, help="folder that dlrm_v3.generate wrote")
    add("--mode", choices=("train", "test"), default="train",
        help="train; or only evaluate a checkpoint on the timestamps of inference")  # fmt: skip
    add("--preset", choices=list(PRESETS), help="model and learning (default: the data's preset)")
    add("--first_timestamp", type=int, default=0, help="the first timestamp to train on")
    add("--last_timestamp", type=int, help="the last one (default: the last for training)")
    add("--early_stop", type=int, default=-1, help="stop after this many steps; -1 disables")
    add("--seed", type=int, default=0, help="seed of initial weights, dropout and order")
    add("--stall_timeout", type=float, default=300.0,
        help="end all ranks after so many seconds without progress; 0 disables")  # fmt: skip

    add("--amp", action="store_true", help="compute in 16 bits, keep the weights in 32")
    add("--amp_dtype", choices=("bfloat16", "float16"), default="bfloat16", help="type of --amp")
    add("--xla", action="store_true", help="compile the model with XLA; without the fused ops")
    add("--fused", action=argparse.BooleanOptionalAction,
        help="use the fused ops of `make hstu_op` (default: if they are built)")  # fmt: skip
    add("--embedding", choices=BACKENDS, default="auto", help="backend of the tables")
    add("--sok_gpu_gb", type=int, default=16, help="GiB of rows on a GPU with sok_dynamic")
    add("--compress", action="store_true", help="send each distinct key of a batch only once")

    add("--checkpoint_dir", help="folder for checkpoints; if unset, none is written")
    add("--checkpoint_timestamps", type=int, default=3, help="timestamps between checkpoints")
    add("--keep_checkpoints", type=int, default=2, help="number of latest checkpoints to keep")
    add("--resume", default="auto", help="auto, none, or the path of a checkpoint")
    add("--ignore_data_change", action="store_true", help="resume even if the data changed")
    add("--run_dir", help="folder for events.jsonl, run.png, result.md and TensorBoard's files")
    add("--log_interval", type=int, default=20, help="steps between console lines")
    add("--metrics_port", type=int, help="port where Prometheus reads the figures; 0: a free one")
    add("--mlflow", help="address of an MLflow server, such as http://HOST:5000")

    add_flags(made.add_argument_group("learning"), LearningConfig)
    add_flags(made.add_argument_group("shape of the model"), HstuConfig)
    return made


def settings_of(flags: argparse.Namespace, stream: StreamConfig, preset: str) -> StreamTraining:
    """Completes the flags from the presets, and checks that they fit together and the data.

    Args:
        flags: The flags, parsed.
        stream: The settings of the data.
        preset: The preset of the data.

    Raises:
        ValueError: They do not; the message names the flag.
    """
    values = vars(flags)
    base = PRESETS[values["preset"] or preset]
    model = replace(base.model, **given_values(HstuConfig, values))
    learning = replace(base.learning, **given_values(LearningConfig, values))
    if not model.user_rows:
        model = replace(model, user_rows=stream.users)
    of_presets = {*dataclasses.asdict(model), *dataclasses.asdict(learning)}
    options = {name: value for name, value in values.items() if name not in of_presets}
    if options["last_timestamp"] is None:
        options["last_timestamp"] = stream.train_timestamps - 1
    options["preset"] = values["preset"] or preset
    options["max_length"] = max_length(model, stream)
    if model.user_rows < stream.users:
        raise ValueError(
            f"--user_rows: expected at least the {stream.users:,} users of the data, found "
            f"{model.user_rows:,}"
        )
    _check_options(options, stream)
    if "rating" not in model.tasks:
        raise ValueError(
            f"expected --tasks with rating, which is evaluated, found {','.join(model.tasks)}"
        )
    for name, value in {**dataclasses.asdict(model), **dataclasses.asdict(learning)}.items():
        if name.endswith("_dropout"):
            _require(name, 0 <= value < 1, "0 or more, below 1", value)
        elif name in ("eval_batches", "min_history_for_user"):
            _require(name, value >= 0, "0 or more", value)
        elif name == "dense_betas":
            holds = len(value) == 2 and all(0 <= beta < 1 for beta in value)
            _require(name, holds, "two numbers from 0 on, below 1", ",".join(map(str, value)))
        elif name == "position_buckets":
            _require(name, value >= 2, "2 or more: the users' and the candidates'", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            _require(name, 0 < value < float("inf"), "above 0", value)
    return StreamTraining(model, learning, argparse.Namespace(**options))


def tracking_of(options: Mapping[str, Any]) -> TrackingConfig:
    """Returns the settings of what shows the run to other programs.

    Raises:
        ValueError: They make no sense.
    """
    return TrackingConfig(metrics_port=options["metrics_port"], mlflow=options["mlflow"])


def _check_options(options: Mapping[str, Any], stream: StreamConfig) -> None:
    """Refuses values that make no sense."""
    first, last = options["first_timestamp"], options["last_timestamp"]
    most = stream.train_timestamps - 1
    _require("first_timestamp", 0 <= first <= most, f"one of 0 to {most}", first)
    _require("last_timestamp", first <= last <= most, f"one of {first} to {most}", last)
    for name in ("checkpoint_timestamps", "keep_checkpoints", "log_interval"):
        _require(name, options[name] >= 1, "1 or more", options[name])
    stop, timeout = options["early_stop"], options["stall_timeout"]
    _require("early_stop", stop == -1 or stop >= 1, "1 or more, or -1 for none", stop)
    _require("stall_timeout", 0 <= timeout < float("inf"), "0 or more", timeout)
    tracking_of(options)
    named = options["checkpoint_dir"] or options["resume"] not in ("auto", "none")
    if options["mode"] == "test" and not named:
        raise ValueError(
            "--mode=test: no checkpoint named; set --checkpoint_dir=FOLDER or --resume=PATH"
        )
    if options["xla"] and options["fused"]:
        raise ValueError("expected one of --xla and --fused, which XLA cannot compile, found both")
    if options["mode"] == "test" and options["xla"]:
        raise ValueError(
            "--mode=test: expected no --xla, which compiles for the candidates of training, fewer "
            "than those of inference; leave it out"
        )


def _require(name: str, holds: bool, expected: str, found: object) -> None:
    """Raises `ValueError` about a flag unless the condition holds."""
    if not holds:
        raise ValueError(f"expected --{name} of {expected}, found {found}")
