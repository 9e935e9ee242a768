"""The flags of the benchmark: names and meanings of MLPerf's reference, and some of our own.

It loads nothing heavy, so that errors in flags and --help do not wait.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dlrm import cli

SCENARIOS = ("Server", "Offline")
QUANT_TYPES = ("int8", "int4")
NAMES = {
    "streaming-100b": "streaming-100b",
    "sampled-streaming-100b": "sampled",
    "sampled": "sampled",
    "small": "small",
    "tiny": "tiny",
}
"""The preset of each data set's name: the reference's names, then ours."""

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    result = cli.Parser(
        prog="python3 -m dlrm_v3.benchmark",
        description=(
            "Run MLPerf's load generator on a trained DLRMv3. Exit code 1 if LoadGen's result is "
            "INVALID."
        ),
    )
    add = result.add_argument_group("as in MLPerf's reference").add_argument
    add(
        "--dataset",
        default="sampled-streaming-100b",
        metavar="NAME|FOLDER",
        help=f"{', '.join(NAMES)}, or a folder that dlrm_v3.generate wrote "
        "(default: sampled-streaming-100b)",
    )
    add(
        "--dataset-path-prefix",
        type=Path,
        default=Path("build", "dlrm_v3"),
        metavar="FOLDER",
        help="where a data set of that name lies, in a folder named like its preset: "
        "sampled-streaming-100b in FOLDER/sampled (default: build/dlrm_v3)",
    )
    add(
        "--model-path",
        type=Path,
        required=True,
        metavar="CHECKPOINT",
        help="checkpoint of dlrm_v3.train, or a folder of them, whose newest is used",
    )
    add("--scenario-name", choices=SCENARIOS, default="Server", help="default: Server")
    add("--batchsize", type=_count, default=10, metavar="N", help="most requests of a batch: 10")
    _add_boolean(add, "--output-trace", "write a Chrome trace of the run: trace.json in --output")
    add(
        "--data-producer-threads",
        type=_count,
        default=8,
        metavar="N",
        help="threads that read and collate batches ahead of the model (default: 8)",
    )
    _add_boolean(add, "--compute-eval", "run AccuracyOnly, with predictions and labels in the log")
    _add_boolean(add, "--find-peak-performance", "search the highest rate that Server bears")
    add(
        "--warmup-ratio",
        type=_share_or_none,
        default=0.1,
        metavar="X",
        help="share of the requests that Server runs beforehand, as a test of its own; 0 for none "
        "(default: 0.1)",
    )
    add(
        "--num-queries",
        type=_count,
        metavar="N",
        help="queries of Server (default: one pass over the requests, or as many as the shortest "
        "run needs)",
    )
    add(
        "--target-qps",
        type=_positive,
        metavar="X",
        help="requests a second: what Server must bear; what Offline is expected to reach "
        "(default: measured)",
    )
    add("--numpy-rand-seed", type=_seed, default=123, metavar="N", help="of the order: 123")
    _add_boolean(add, "--sparse-quant", "keep the tables in fewer bits")
    add(
        "--dataset-percentage",
        type=_share,
        default=1.0,
        metavar="X",
        help="share of each timestamp's requests that is run, in (0, 1] (default: 1)",
    )
    add = result.add_argument_group("of our own").add_argument
    add("--sparse-quant-type", choices=QUANT_TYPES, default="int8", help="default: int8")
    add(
        "--runners",
        type=_count,
        metavar="N",
        help="batches that the model scores at a time, on all cores together (default: Server 1, "
        "Offline 2)",
    )
    add("--user-conf", type=Path, metavar="FILE", help="LoadGen's, read after its mlperf.conf")
    add("--min-duration-ms", type=_count, metavar="N", help="shortest run (default: 600000)")
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for LoadGen's logs (default: build/dlrm_v3/loadgen/SCENARIO_MODE)",
    )
    return result


def _add_boolean(add: object, name: str, text: str) -> None:
    assert callable(add)
    add(
        name,
        type=_boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help=f"{text} (default: false)",
    )


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(_TRUE)}, {', '.join(_FALSE)} or nothing, found {text!r}"
        )
    return text.lower() in _TRUE


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, found {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, found {text!r}")
    return int(text)


def _number(text: str) -> float:
    """The number; NaN if it is none, which is in no range."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _positive(text: str) -> float:
    if not 0 < _number(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")
    return float(text)


def _share(text: str) -> float:
    if not 0 < _number(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in (0, 1], found {text!r}")
    return float(text)


def _share_or_none(text: str) -> float:
    if not 0 <= _number(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return float(text)


def mode_of(flags: argparse.Namespace) -> str:
    """The mode of LoadGen.

    Raises:
        ValueError: Flags do not go together.
    """
    if flags.compute_eval and flags.find_peak_performance:
        raise ValueError("expected one of --compute-eval and --find-peak-performance, found both")
    if flags.find_peak_performance and flags.scenario_name != "Server":
        raise ValueError(
            "--find-peak-performance: expected --scenario-name=Server, found Offline, whose result "
            "is its peak"
        )
    if flags.num_queries and (flags.scenario_name == "Offline" or flags.compute_eval):
        raise ValueError(
            "--num-queries: expected it with Server alone: Offline runs 1.1 x duration x "
            "--target-qps requests, and --compute-eval runs each request once; leave it out"
        )
    if flags.find_peak_performance:
        return "FindPeakPerformance"
    return "AccuracyOnly" if flags.compute_eval else "PerformanceOnly"


def data_folder(flags: argparse.Namespace) -> tuple[Path, str | None]:
    """The folder of the data, and the preset that it must be of; None for a folder by its path."""
    if flags.dataset in NAMES:
        preset = NAMES[flags.dataset]
        return flags.dataset_path_prefix / preset, preset
    folder = Path(flags.dataset)
    if not folder.is_dir():
        raise ValueError(
            f"--dataset: expected {', '.join(NAMES)} or a folder, found {flags.dataset!r}"
        )
    return folder, None
