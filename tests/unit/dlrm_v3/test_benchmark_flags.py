"""The benchmark's flags: the reference's names, strict values, and what a data set's name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_v3.benchmark.flags import data_folder, mode_of, parser
from dlrm_v3.config import PRESETS

pytestmark = pytest.mark.one_profile

# As the reference's --help has them.
REFERENCE = (
    *("dataset", "model-path", "scenario-name", "batchsize", "output-trace"),
    *("data-producer-threads", "compute-eval", "find-peak-performance", "dataset-path-prefix"),
    *("warmup-ratio", "num-queries", "target-qps", "numpy-rand-seed", "sparse-quant"),
    "dataset-percentage",
)


def parsed(*flags: str):
    return parser().parse_args(["--model-path=x", *flags])


def test_every_flag_of_the_reference_is_there() -> None:
    options = parser().format_help()
    assert all(f"--{name}" in options for name in REFERENCE)
    flags = parsed()
    assert flags.dataset == "sampled-streaming-100b"
    assert flags.scenario_name == "Server"
    assert (flags.batchsize, flags.data_producer_threads, flags.numpy_rand_seed) == (10, 8, 123)
    assert (flags.warmup_ratio, flags.num_queries, flags.target_qps) == (0.1, None, None)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("", False), ("--sparse-quant", True), ("--sparse-quant=true", True)]
    + [("--sparse-quant=No", False), ("--sparse-quant=0", False), ("--sparse-quant=1", True)]
    + [("--sparse-quant=yes", True), ("--sparse-quant=FALSE", False)],
)
def test_a_boolean_is_what_it_says(flag: str, value: bool) -> None:
    assert parsed(*([flag] if flag else [])).sparse_quant is value


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--compute-eval=maybe", "expected true, 1, yes, false, 0, no or nothing, found 'maybe'"),
        ("--output-trace=", "found ''"),
        ("--batchsize=0", "expected a whole number, 1 or more, found '0'"),
        ("--target-qps=nan", "expected a positive number, found 'nan'"),
        ("--dataset-percentage=1.5", "expected a number in (0, 1], found '1.5'"),
        ("--warmup-ratio=-1", "expected a number from 0 to 1, found '-1'"),
        ("--numpy-rand-seed=-1", "expected a whole number, 0 or more, found '-1'"),
        ("--scenario-name=Stream", "invalid choice: 'Stream'"),
        ("--sparse-quant-type=int2", "invalid choice: 'int2'"),
        ("--unknown=1", "unrecognized arguments"),
    ],
)
def test_a_bad_value_is_named(flag: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        parsed(flag)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_set_is_a_folder_of_its_preset(tmp_path: Path) -> None:
    prefix = f"--dataset-path-prefix={tmp_path}"
    assert data_folder(parsed(prefix)) == (tmp_path / "sampled", "sampled")
    assert data_folder(parsed(prefix, "--dataset=tiny")) == (tmp_path / "tiny", "tiny")
    for name in PRESETS:
        assert data_folder(parsed(f"--dataset={name}"))[1] == name
    assert data_folder(parsed(f"--dataset={tmp_path}")) == (tmp_path, None)
    with pytest.raises(ValueError, match="--dataset: expected .* or a folder, found 'nothing'"):
        data_folder(parsed("--dataset=nothing"))


def test_the_mode_follows_from_the_flags() -> None:
    assert mode_of(parsed()) == "PerformanceOnly"
    assert mode_of(parsed("--compute-eval")) == "AccuracyOnly"
    assert mode_of(parsed("--find-peak-performance")) == "FindPeakPerformance"
    for flags, message in (
        (["--compute-eval", "--find-peak-performance"], "found both"),
        (["--scenario-name=Offline", "--num-queries=5"], "with Server alone"),
        (["--compute-eval", "--num-queries=5"], "with Server alone"),
        (["--find-peak-performance", "--scenario-name=Offline"], "expected --scenario-name=Server"),
    ):
        with pytest.raises(ValueError, match=message):
            mode_of(parsed(*flags))
