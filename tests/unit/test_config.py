"""The flags that users know, what is refused, and flagfiles, through the real command line."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dlrm.config import SECTIONS, SETTINGS, Config
from tests.support.processes import ROOT, Ended, run, without_modules

# The flags of the SOK DLRM benchmark. A name or a default changes here only on purpose.
BENCHMARK_FLAGS: dict[str, Any] = {
    "data_dir": None,
    "global_batch_size": 65536,
    "amp": False,
    "xla": False,
    "compress": False,
    "custom_interact": False,
    "eval_in_last": False,
    "use_synthetic_dataset": False,
    "use_splited_dataset": False,
    "early_stop": -1,
    "epochs": 1,
    "lr": 24.0,
}
SYNTHETIC_TABLES = (
    *(203931, 18598, 14092, 7012, 18977, 4, 6385, 1245, 49, 186213, 71328, 67288, 11),
    *(2168, 7338, 61, 4, 932, 15, 204515, 141526, 199433, 60919, 9137, 71, 34),
)
OUR_FLAGS: dict[str, Any] = {
    "custom_mlp": False,
    "eval_interval": 3793,
    "evals_per_epoch": None,
    "auc_target": 0.8025,
    "auc_thresholds": 8000,
    "warmup_steps": None,
    "decay_start_step": None,
    "decay_steps": None,
    "embedding": "auto",
    "sok_gpu_gb": 16,
    "embedding_grad": "mean",
    "optimizer": "sgd",
    "dense_optimizer": "sgd",
    "dense_lr": None,
    "lr_schedule": "poly",
    "decay_ratio": 0.1,
    "clip_norm": None,
    "weight_decay": 0.0,
    "dense_weight_decay": None,
    "momentum": 0.9,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "initial_accumulator": None,
    "ftrl_l1": 0.0,
    "ftrl_l2": 0.0,
    "embedding_dim": 128,
    "bottom_mlp": (512, 256, 128),
    "top_mlp": (1024, 1024, 512, 256, 1),
    "interaction": "dot",
    "cross_layers": 3,
    "cross_rank": 512,
    "amp_dtype": "float16",
    "verify_data": "size",
    "bad_ids": "error",
    "seed": 0,
    "run_dir": None,
    "metrics_port": None,
    "mlflow": None,
    "log_path": None,
    "mlperf_log": None,
    "mlperf_division": "open",
    "mlperf_org": "unnamed",
    "mlperf_platform": None,
    "mlperf_status": "research",
    "log_interval": 1000,
    "mode": "train",
    "checkpoint_dir": None,
    "checkpoint_interval": 10000,
    "keep_checkpoints": 2,
    "resume": "auto",
    "append_day": None,
    "ignore_data_change": False,
    "ignore_optimizer_change": False,
    "stall_timeout": 300.0,
    "inference_benchmark_batch_sizes": (1, 64, 4096),
    "inference_benchmark_steps": 200,
    "dataset_type": "split",
    "num_numerical_features": None,
    "dataset_subset": 1.0,
    "shuffle_batch_order": False,
    "synthetic_dataset_num_entries": 5242880,
    "synthetic_dataset_table_sizes": SYNTHETIC_TABLES,
    "synthetic_hotness": (),
    "synthetic_dataset_dir": "synthetic_dataset",
    "loss_scale": None,
    "max_table_size": None,
    "admit_after": 0,
    "evict_after": 0,
    "sok_rows": 0,
    "warmup_factor": 0,
    "decay_power": 2,
    "decay_end_lr": 0.0,
    "test_after": 0.0,
    "test_batch_size": None,
    "benchmark_warmup_steps": 0,
    "profile": None,
    "step_breakdown": False,
}
LISTS = (
    "bottom_mlp",
    "top_mlp",
    "inference_benchmark_batch_sizes",
    "synthetic_dataset_table_sizes",
    "synthetic_hotness",
)
# The names that users of NVIDIA's PyTorch DLRM know.
ALIASES = {
    "auc_threshold": "auc_target",
    "batch_size": "global_batch_size",
    "bottom_mlp_sizes": "bottom_mlp",
    "dataset": "data_dir",
    "load_checkpoint_path": "resume",
    "max_steps": "early_stop",
    "print_freq": "log_interval",
    "save_checkpoint_path": "checkpoint_dir",
    "shuffle": "shuffle_batch_order",
    "test_freq": "eval_interval",
    "top_mlp_sizes": "top_mlp",
}
CHOICES = {
    "embedding": ["auto", "alltoall", "dynamic", "sok", "sok_dynamic"],
    "embedding_grad": ["mean", "sum"],
    "optimizer": ["sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "ftrl"],
    "dense_optimizer": ["sgd", "momentum", "adagrad", "adam", "ftrl"],
    "lr_schedule": ["poly", "constant", "cosine", "step"],
    "interaction": ["dot", "dcnv2", "sum", "concat"],
    "amp_dtype": ["float16", "bfloat16"],
    "verify_data": ["off", "size", "full"],
    "bad_ids": ["error", "clip", "zero", "modulo"],
    "dataset_type": ["split", "binary", "memmap", "synthetic_gpu", "synthetic_disk"],
    "mlperf_division": ["closed", "open"],
    "mlperf_status": ["cloud", "onprem", "preview", "research"],
    "mode": ["train", "test", "inference_benchmark"],
}
PRESETS = sorted((ROOT / "presets").iterdir())

# What main.py makes of its arguments, without a run.
PARSE = """
import json, sys
from absl import flags
import main
from dlrm.config import SECTIONS, SETTINGS
main.define_flags()
flags.FLAGS(sys.argv)
groups = flags.FLAGS.flags_by_module_dict()
both = {flag.name: flag for section in SECTIONS for flag in groups[section]}
defined = [both.pop(setting.name) for setting in SETTINGS]
print(json.dumps({
    "config": main.config_from_flags().flat(),
    "defaults": {flag.name: flag.default for flag in defined},
    "choices": {f.name: f.parser.enum_values for f in defined if hasattr(f.parser, "enum_values")},
    "help": {flag.name: flag.help for flag in defined},
    "aliases": sorted(both),
}))
"""


def parsed(*arguments: str) -> dict[str, Any]:
    done = run([sys.executable, "-c", PARSE, *arguments], time_limit=60)
    assert done.code == 0, done.output
    result: dict[str, Any] = json.loads(done.output)
    return result


HEAVY = ("tensorflow", "keras", "horovod", "numpy")


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    """Where nothing heavy can be imported: flags must be judged before that."""
    return without_modules(tmp_path, *HEAVY)


def main(env: dict[str, str], *arguments: str) -> Ended:
    return run(["python3", "main.py", *arguments], time_limit=60, env=env)


def assert_one_line(ended: Ended, *parts: str) -> None:
    assert ended.code == 1
    lines = ended.output.strip().splitlines()
    assert len(lines) == 1, ended.output
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_defaults_are_frozen() -> None:
    frozen = {**BENCHMARK_FLAGS, **OUR_FLAGS}
    config = Config.of(use_synthetic_dataset=True)
    found = {setting.name: setting.default for setting in SETTINGS}
    assert len(found) == len(SETTINGS), "two fields of one name"
    assert found == frozen
    # 1 == True, so types are compared too.
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in frozen.items()
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optimizer.lr = 1.0  # type: ignore[misc]


def test_flags_are_the_fields() -> None:
    result = parsed("--use_synthetic_dataset")
    frozen = {**BENCHMARK_FLAGS, **OUR_FLAGS}
    for name in LISTS:
        frozen[name] = [str(number) for number in frozen[name]]
    assert result["defaults"] == frozen
    assert result["choices"] == CHOICES
    assert result["aliases"] == sorted(ALIASES)
    assert all(len(text) > 10 for text in result["help"].values())
    assert result["config"] == json.loads(json.dumps(Config.of(use_synthetic_dataset=True).flat()))


def test_every_flag_arrives() -> None:
    """A value other than the default for each, in each way of writing a boolean."""
    given = {
        "data_dir": "some/folder",
        "global_batch_size": 2048,
        "eval_interval": 7,
        "evals_per_epoch": 6,
        "auc_target": 0.5,
        "auc_thresholds": 100,
        "warmup_steps": 3,
        "decay_start_step": 5,
        "decay_steps": 9,
        "embedding": "dynamic",
        "admit_after": 3,
        "evict_after": 27,
        "sok_gpu_gb": 3,
        "embedding_grad": "sum",
        "optimizer": "ftrl",
        "dense_optimizer": "adam",
        "dense_lr": 0.375,
        "lr_schedule": "step",
        "decay_ratio": 0.75,
        "clip_norm": 3.5,
        "weight_decay": 0.0625,
        "dense_weight_decay": 0.03125,
        "momentum": 0.8,
        "beta1": 0.7,
        "beta2": 0.6,
        "epsilon": 0.01,
        "initial_accumulator": 0.2,
        "ftrl_l1": 0.3,
        "ftrl_l2": 0.4,
        "embedding_dim": 8,
        "amp_dtype": "bfloat16",
        "verify_data": "full",
        "bad_ids": "clip",
        "seed": 11,
        "run_dir": "other/folder",
        "metrics_port": 9464,
        "mlflow": "http://host:5000",
        "log_path": "fourth/log.json",
        "mlperf_division": "closed",
        "mlperf_org": "An organisation",
        "mlperf_platform": "1xDGX",
        "mlperf_status": "cloud",
        "log_interval": 13,
        "early_stop": 17,
        "epochs": 2,
        "lr": 0.25,
        "mode": "test",
        "checkpoint_dir": "third/folder",
        "checkpoint_interval": 19,
        "keep_checkpoints": 4,
        "append_day": "a/checkpoint",
        "stall_timeout": 30.5,
        "inference_benchmark_steps": 23,
        "dataset_type": "synthetic_disk",
        "num_numerical_features": 4,
        "dataset_subset": 0.5,
        "synthetic_dataset_num_entries": 29,
        "synthetic_dataset_dir": "fourth/folder",
        "loss_scale": 64.0,
        "max_table_size": 31,
        "warmup_factor": 1,
        "decay_power": 3,
        "decay_end_lr": 0.125,
        "test_after": 0.75,
        "test_batch_size": 37,
        "benchmark_warmup_steps": 5,
        "interaction": "dcnv2",
        "cross_layers": 2,
        "cross_rank": 19,
    }
    written = [f"--{name}={value}" for name, value in given.items()]
    written += ["--bottom_mlp=16,8", "--top_mlp=32,1", "--inference_benchmark_batch_sizes=2,3"]
    written += ["--amp", "--xla=true", "--compress=True", "--eval_in_last=1", "--nocustom_interact"]
    written += ["--custom_mlp"]
    written += ["--use_synthetic_dataset=false", "--use_splited_dataset", "--ignore_data_change"]
    written += ["--ignore_optimizer_change"]
    written += ["--shuffle_batch_order", "--synthetic_dataset_table_sizes=5,6"]
    written += ["--synthetic_hotness=1,3"]
    config = parsed(*written)["config"]
    true = ("amp", "xla", "compress", "eval_in_last", "use_splited_dataset", "ignore_data_change")
    assert config == {
        **given,
        "resume": "auto",  # which --append_day wants
        **dict.fromkeys(true, True),
        "shuffle_batch_order": True,
        "ignore_optimizer_change": True,
        "custom_mlp": True,
        "custom_interact": False,
        "use_synthetic_dataset": False,
        "bottom_mlp": [16, 8],
        "top_mlp": [32, 1],
        "inference_benchmark_batch_sizes": [2, 3],
        "synthetic_dataset_table_sizes": [5, 6],
        "synthetic_hotness": [1, 3],
        **dict.fromkeys(("mlperf_log", "profile")),
        "step_breakdown": False,
        "sok_rows": 0,
    }
    of_training = {"mlperf_log": "a.txt", "profile": "3:5", "run_dir": "b"}
    written = [f"--{name}={value}" for name, value in of_training.items()]
    written += ["--step_breakdown", "--embedding=sok_dynamic", "--sok_rows=5"]
    config = parsed("--use_synthetic_dataset", *written)["config"]
    assert config.items() >= {**of_training, "step_breakdown": True, "sok_rows": 5}.items()


def test_aliases_set_the_same_flags() -> None:
    assert {alias: s.name for s in SETTINGS for alias in s.aliases} == ALIASES
    given = {"auc_target": 0.5, "data_dir": "some/folder", "resume": "a/checkpoint"}
    given.update(checkpoint_dir="b", global_batch_size=64, early_stop=7, log_interval=5)
    given.update(eval_interval=9, bottom_mlp=[32, 8, 128], top_mlp=[16, 1])
    given.update(shuffle_batch_order=True)
    written = [
        f"--{alias}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for alias, name in ALIASES.items()
        for value in [given[name]]
    ]
    defaults = json.loads(json.dumps(Config.of(data_dir="x").flat()))
    assert parsed(*written)["config"] == {**defaults, **given}
    later = parsed("--data_dir=x", "--batch_size=64", "--global_batch_size=128")
    assert later["config"]["global_batch_size"] == 128, "the last one given wins"


def test_schedule_is_scaled_where_it_is_not_given() -> None:
    schedule = Config.of(use_synthetic_dataset=True).optimizer.schedule(65536)
    found = (schedule.warmup_steps, schedule.decay_start_step, schedule.decay_steps)
    assert found == (2320, 41609, 23432)
    schedule = Config.of(use_synthetic_dataset=True, warmup_steps=0, lr=1.5).optimizer.schedule(
        110592
    )
    assert (schedule.base, schedule.warmup_steps) == (1.5, 0)
    assert (schedule.decay_start_step, schedule.decay_steps) == (24657, 13886)


def test_evaluations_of_an_epoch_become_an_interval() -> None:
    """MLPerf's own: 4,195,197,692 samples / (55,296 * 20) = 3793.37."""
    evaluation = Config.of(use_synthetic_dataset=True, evals_per_epoch=20).evaluation
    assert evaluation.interval(4_195_197_692 // 55_296) == 3793
    assert evaluation.interval(20) == 1
    with pytest.raises(ValueError, match=r"--evals_per_epoch of at most 19, .* found 20"):
        evaluation.interval(19)
    assert Config.of(use_synthetic_dataset=True, eval_interval=7).evaluation.interval(5) == 7


@pytest.mark.parametrize(
    ("amp", "dtype", "compute", "scale"),
    [
        (False, "float16", "float32", 1.0),
        (True, "float16", "float16", 1024.0),
        (True, "bfloat16", "bfloat16", 1.0),
        (False, "bfloat16", "float32", 1.0),
    ],
)
def test_loss_scale(amp: bool, dtype: str, compute: str, scale: float) -> None:
    config = Config.of(use_synthetic_dataset=True, amp=amp, amp_dtype=dtype)
    assert (config.model.compute_dtype, config.model.loss_factor) == (compute, scale)
    assert config.replace(loss_scale=8.0).model.loss_factor == 8.0


def test_a_resumed_run_keeps_what_its_position_counts_in() -> None:
    in_order = Config.of(use_synthetic_dataset=True)
    assert in_order.data.pinned == ("global_batch_size", "dataset_subset", "shuffle_batch_order")
    assert "seed" in in_order.replace(shuffle_batch_order=True).data.pinned


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"use_synthetic_dataset": False}, ["--data_dir", "--use_synthetic_dataset"]),
    ({"use_synthetic_dataset": False, "data_dir": ""}, ["--data_dir"]),
    ({"global_batch_size": 0}, ["--global_batch_size", "1 or more", "found 0"]),
    ({"embedding_dim": 0, "bottom_mlp": (0,)}, ["--embedding_dim", "1 or more", "found 0"]),
    ({"epochs": 0}, ["--epochs", "1 or more", "found 0"]),
    ({"eval_interval": -5}, ["--eval_interval", "1 or more", "found -5"]),
    ({"evals_per_epoch": 0}, ["--evals_per_epoch", "1 or more", "found 0"]),
    ({"log_interval": 0}, ["--log_interval", "1 or more", "found 0"]),
    ({"auc_thresholds": 1}, ["--auc_thresholds", "2 or more", "found 1"]),
    ({"embedding_dim": 16}, ["--bottom_mlp", "--embedding_dim", "16", "(512, 256, 128)"]),
    ({"bottom_mlp": ()}, ["--bottom_mlp", "--embedding_dim"]),
    ({"bottom_mlp": (-4, 128)}, ["--bottom_mlp", "positive"]),
    ({"top_mlp": (512, 2)}, ["--top_mlp", "1 unit", "(512, 2)"]),
    ({"top_mlp": ()}, ["--top_mlp", "1 unit"]),
    ({"top_mlp": (0, 1)}, ["--top_mlp", "positive"]),
    ({"cross_layers": 0}, ["--cross_layers", "1 or more", "found 0"]),
    ({"cross_rank": 0}, ["--cross_rank", "1 or more", "found 0"]),
    (
        {"interaction": "dcnv2", "custom_interact": True},
        ["--custom_interact", "expected --interaction=dot", "found --interaction=dcnv2", "leave"],
    ),
    ({"warmup_steps": -1}, ["--warmup_steps", "-1"]),
    ({"warmup_steps": 10, "decay_start_step": 9}, ["--warmup_steps", "--decay_start_step"]),
    ({"decay_steps": -1}, ["--decay_steps", "-1"]),
    ({"mlperf_org": ""}, ["--mlperf_org", "found none"]),
    ({"mlperf_log": "x", "mode": "test", "resume": "y"}, ["--mlperf_log", "--mode=test"]),
    ({"mlperf_log": "x", "verify_data": "full"}, ["--mlperf_log", "--verify_data=size"]),
    (
        {"mlperf_log": "x", "mlperf_division": "closed", "top_mlp": (8, 1)},
        ["--mlperf_division=closed", "3 layers", "5 in --top_mlp", "found 3 and 2"],
    ),
    (
        {"mlperf_log": "x", "mlperf_division": "closed", "interaction": "dcnv2"},
        ["--mlperf_division=closed", "--interaction=dot", "found --interaction=dcnv2"],
    ),
    ({"inference_benchmark_steps": 0}, ["--inference_benchmark_steps", "1 or more", "found 0"]),
    ({"inference_benchmark_batch_sizes": (4, 0)}, ["--inference_benchmark_batch_sizes", "4,0"]),
    ({"inference_benchmark_batch_sizes": ()}, ["--inference_benchmark_batch_sizes", "none"]),
    ({"dataset_type": "binary"}, ["--dataset_type=binary", "split_bin.py", "--data_dir=DATA"]),
    ({"dataset_type": "memmap", "data_dir": "x"}, ["--dataset_type=memmap", "split_bin.py"]),
    ({"num_numerical_features": 0}, ["--num_numerical_features", "1 or more", "found 0"]),
    ({"dataset_subset": 0.0}, ["--dataset_subset", "above 0", "found 0.0"]),
    ({"dataset_subset": 1.5}, ["--dataset_subset", "at most 1", "found 1.5"]),
    ({"synthetic_dataset_num_entries": 0}, ["--synthetic_dataset_num_entries", "found 0"]),
    ({"synthetic_dataset_table_sizes": (3, 0)}, ["--synthetic_dataset_table_sizes", "3,0"]),
    ({"synthetic_dataset_table_sizes": ()}, ["--synthetic_dataset_table_sizes", "none"]),
    ({"loss_scale": 0.0}, ["--loss_scale", "above 0", "found 0.0"]),
    ({"admit_after": 2}, ["--admit_after", "--embedding=dynamic", "found --embedding=auto"]),
    ({"evict_after": 9, "embedding": "sok_dynamic"}, ["--evict_after", "--embedding=dynamic"]),
    ({"sok_rows": 2}, ["--sok_rows", "--embedding=sok_dynamic", "found --embedding=auto"]),
    ({"sok_rows": -1, "embedding": "sok_dynamic"}, ["--sok_rows of 0 to", "found -1"]),
    ({"evict_after": -1, "embedding": "dynamic"}, ["--evict_after of 0 to", "found -1"]),
    ({"max_table_size": 100}, ["--max_table_size", "--bad_ids=modulo"]),
    ({"max_table_size": 0, "bad_ids": "modulo"}, ["--max_table_size", "found 0"]),
    ({"warmup_factor": -1}, ["--warmup_factor", "found -1"]),
    ({"decay_power": 0}, ["--decay_power", "found 0"]),
    ({"decay_end_lr": 25.0}, ["--decay_end_lr", "24 (--lr)", "found 25"]),
    ({"dense_lr": 0.0}, ["--dense_lr above 0", "found 0.0"]),
    ({"clip_norm": 0.0}, ["--clip_norm above 0", "found 0.0"]),
    ({"epsilon": 0.0}, ["--epsilon above 0", "found 0.0"]),
    ({"momentum": 1.0}, ["--momentum of 0 or more and below 1", "found 1.0"]),
    ({"beta2": -0.1}, ["--beta2 of 0 or more and below 1", "found -0.1"]),
    ({"weight_decay": -1.0}, ["--weight_decay of 0 or more", "found -1.0"]),
    ({"lr": 2.0, "weight_decay": 0.5}, ["--weight_decay", "less than 0.5 (1 / --lr)", "found 0.5"]),
    (
        {"dense_lr": 4.0, "dense_weight_decay": 0.5},
        ["--dense_weight_decay", "less than 0.25 (1 / --dense_lr)", "found 0.5"],
    ),
    ({"ftrl_l1": 0.1}, ["--ftrl_l1", "ftrl alone", "--optimizer=sgd", "--weight_decay"]),
    ({"ftrl_l2": 0.1, "optimizer": "adam"}, ["--ftrl_l2", "--optimizer=adam"]),
    ({"initial_accumulator": 0.1}, ["--initial_accumulator", "adagrad", "--optimizer=sgd"]),
    (
        {"initial_accumulator": 0.0, "dense_optimizer": "ftrl"},
        ["--initial_accumulator above 0 for ftrl", "found 0.0"],
    ),
    (
        {"initial_accumulator": -0.1, "optimizer": "adagrad"},
        ["--initial_accumulator of 0 or more", "found -0.1"],
    ),
    (
        {"lr_schedule": "constant", "decay_steps": 7},
        ["--lr_schedule=constant", "--decay_steps=7", "leave it out"],
    ),
    ({"lr_schedule": "step", "decay_steps": 0}, ["--decay_steps of 1 or more", "found 0"]),
    ({"decay_ratio": 1.0}, ["--decay_ratio between 0 and 1", "found 1.0"]),
    ({"mlperf_log": "x", "optimizer": "adam"}, ["--mlperf_log", "plain SGD", "--optimizer=adam"]),
    ({"mlperf_log": "x", "clip_norm": 1.0}, ["--mlperf_log", "--clip_norm=1.0"]),
    ({"test_after": -0.5}, ["--test_after", "found -0.5"]),
    ({"test_batch_size": 0}, ["--test_batch_size", "found 0"]),
    ({"benchmark_warmup_steps": -1}, ["--benchmark_warmup_steps", "found -1"]),
    (
        {"benchmark_warmup_steps": 10, "early_stop": 10},
        ["--benchmark_warmup_steps below --early_stop=10", "found 10"],
    ),
    ({"profile": "20", "run_dir": "x"}, ["--profile=FIRST:LAST", "found '20'"]),
    ({"profile": "20:20", "run_dir": "x"}, ["second one greater", "found '20:20'"]),
    ({"profile": "-1:20", "run_dir": "x"}, ["--profile=FIRST:LAST", "found '-1:20'"]),
    ({"profile": "10:20"}, ["--profile", "--run_dir=FOLDER"]),
    ({"profile": "10:20", "run_dir": "x", "early_stop": 19}, ["--early_stop=19", "10:20"]),
    ({"step_breakdown": True, "mode": "test", "resume": "y"}, ["--step_breakdown", "--mode=test"]),
    ({"mode": "inference_benchmark"}, ["--mode=inference_benchmark", "--checkpoint_dir=FOLDER"]),
]


@pytest.mark.parametrize(("settings", "parts"), REFUSED, ids=lambda value: str(value)[:50])
def test_refused_with_one_line(settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError, match="--") as caught:
        Config.of(**{"use_synthetic_dataset": True, **settings})
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_heavy_modules_are_really_blocked(light: dict[str, str]) -> None:
    for name in HEAVY:
        ended = run(["python3", "-c", f"import {name}"], time_limit=60, env=light)
        assert f"No module named '{name}' (blocked)" in ended.output


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--data_dir=FOLDER", "--use_synthetic_dataset"]),
        (["--data_dir=x", "--embedding_dim=64"], ["--embedding_dim", "expected 64"]),
        (["--data_dir=x", "--bottom_mlp=512,a,128"], ["--bottom_mlp", "512,a,128", "integers"]),
        (["--data_dir=x", "--top_mlp="], ["--top_mlp"]),
        (
            ["--data_dir=x", "--inference_benchmark_batch_sizes=1,many"],
            ["--inference_benchmark_batch_sizes", "integers such as 1,64,4096", "1,many"],
        ),
        (["--data_dir", "x", "y"], ["'y'", "--name=value"]),
    ],
    ids=str,
)
def test_refused_on_the_command_line(
    light: dict[str, str], arguments: list[str], parts: list[str]
) -> None:
    assert_one_line(main(light, *arguments), *parts)


@pytest.mark.parametrize(
    "argument", ["--lr=fast", "--bad_ids=ignore", "--embedding=hugectr", "--epoch_count=3"]
)
def test_unknown_values_and_flags(light: dict[str, str], argument: str) -> None:
    name = argument.strip("-").partition("=")[0]
    assert_one_line(main(light, "--use_synthetic_dataset", argument), name, "--help")


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("--hash_indices", "set --bad_ids=modulo"),
        ("--nooptimized_mlp", "leave it out"),
        ("--interaction_op=cuda_dot", "--custom_interact for cuda_dot"),
        ("--embedding_type=joint_fused", "leave it out"),
        ("--base_device=cuda", "leave it out"),
        ("--output_dir=x", "--checkpoint_dir"),
    ],
)
def test_flags_of_the_pytorch_dlrm_without_a_counterpart(
    light: dict[str, str], argument: str, remedy: str
) -> None:
    name = argument.partition("=")[0]
    assert_one_line(main(light, "--use_synthetic_dataset", argument), f"{name}: ", remedy)


def test_flagfile(light: dict[str, str], tmp_path: Path) -> None:
    flagfile = tmp_path / "some.flags"
    flagfile.write_text("# a comment\n--use_synthetic_dataset\n\n--epochs=3\n--compress\n")
    config = parsed(f"--flagfile={flagfile}", "--epochs=2")["config"]
    assert config["epochs"] == 2, "the command line comes after the file, and wins"
    assert config["compress"]
    assert config["use_synthetic_dataset"]

    flagfile.write_text("--use_synthetic_dataset\n--eval_interval=0\n")
    assert_one_line(main(light, f"--flagfile={flagfile}"), "--eval_interval", "found 0")

    assert_one_line(main(light, f"--flagfile={tmp_path / 'missing.flags'}"), "missing.flags")


@pytest.mark.parametrize("argument", ["--help", "--helpshort"])
def test_help_names_every_flag_in_its_section(light: dict[str, str], argument: str) -> None:
    ended = main(light, argument)
    assert ended.code == 0
    sections = re.split(r"^(\w+):$", ended.output, flags=re.MULTILINE)[1:]
    found = dict(zip(sections[::2], sections[1::2]))
    assert list(found) == list(SECTIONS)
    for setting in SETTINGS:
        assert f"{setting.name}:" in found[setting.section]


def test_without_the_packages_one_line_names_the_remedy(tmp_path: Path) -> None:
    for package in ("absl", "tensorflow"):
        env = without_modules(tmp_path, package)
        assert_one_line(main(env, "--use_synthetic_dataset"), f"without {package}", "make setup")


def test_presets_are_there() -> None:
    names = {path.name for path in PRESETS}
    assert names >= {"demo.flags", "logs.flags", "kaggle.flags", "terabyte.flags"}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_preset_is_a_config(preset: Path) -> None:
    config = parsed(f"--flagfile={preset}", "--data_dir=data")["config"]
    assert config["data_dir"] == "data"
    assert config["bottom_mlp"][-1] == config["embedding_dim"]
    lines = preset.read_text().splitlines()
    written = [line for line in lines if line.startswith("--")]
    assert len({line.partition("=")[0] for line in written}) == len(written), "a flag twice"
    assert lines[0].startswith("#"), "a preset says what it is for"
