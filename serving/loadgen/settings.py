"""LoadGen's settings: its own mlperf.conf, then files of the user, then flags.

LoadGen carries MLPerf's settings of each benchmark and its seeds. A conf file has lines
`model.scenario.name = number`, `*` for any model or scenario. It must not know scorers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCENARIOS = ("Offline", "Server")
MODES = ("PerformanceOnly", "AccuracyOnly", "FindPeakPerformance")

_LINE = re.compile(r"\s*[^\s.=#]+\.[^\s.=#]+\.\w+\s+=\s+[-+.\w]+\s*(#.*)?")
_UNSET_QPS = 1.0  # what LoadGen's mlperf.conf says until the user does
_MARGIN = 1.25  # Offline's samples must last even if the measurement was slower than the test
_BEARABLE = 0.6  # of the measured rate, what Server may bear within its bound


def import_loadgen() -> Any:
    """Imports LoadGen.

    Raises:
        OSError: It is not installed.
    """
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise OSError(
            f"expected the package mlcommons-loadgen, found none ({error}); run `make serve-setup`"
        ) from None
    return mlperf_loadgen


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; None leaves the value of the conf files.

    Attributes:
        scenario: One of `SCENARIOS`.
        mode: One of `MODES`.
        benchmark: The name of the model in the conf files, such as dlrm or dlrm-v2.
        conf_files: Conf files, read in this order after LoadGen's own.
        target_qps: Samples a second that are sent, or expected (Offline).
        target_latency_ms: The latency bound of Server.
        min_duration_ms: The shortest run.
        min_query_count: The fewest queries; for Offline the fewest samples.
    """

    scenario: str
    mode: str
    benchmark: str
    conf_files: Sequence[Path]
    target_qps: float | None
    target_latency_ms: float | None
    min_duration_ms: int | None
    min_query_count: int | None


def make_settings(wanted: Wanted, samples: int) -> Any:
    """Makes LoadGen's `TestSettings`.

    Args:
        wanted: What the user asked for.
        samples: Number of samples that there are; no more of them are loaded at a time.

    Returns:
        The settings. `needs_target(settings)` says whether a target is still missing.

    Raises:
        OSError: LoadGen is not installed, or a conf file is missing.
        ValueError: A conf file is malformed, or FindPeakPerformance is asked of Offline.
    """
    lg = import_loadgen()
    if wanted.mode == "FindPeakPerformance" and wanted.scenario != "Server":
        raise ValueError(
            f"expected --scenario=Server with --mode={wanted.mode}, found {wanted.scenario}; "
            "PerformanceOnly measures the peak of Offline"
        )
    settings = lg.TestSettings()
    settings.FromConfig("", wanted.benchmark, wanted.scenario, 0)
    for path in wanted.conf_files:
        _check_conf_file(path)
        if settings.FromConfig(os.fspath(path), wanted.benchmark, wanted.scenario, 1):
            raise ValueError(
                f"{path}: LoadGen does not take it; expected lines like *.Server.target_qps = 100"
            )
    # A mode or scenario in a conf file does not override the flags.
    settings.scenario = getattr(lg.TestScenario, wanted.scenario)
    settings.mode = getattr(lg.TestMode, wanted.mode)
    if wanted.target_qps is not None:
        settings.server_target_qps = settings.offline_expected_qps = wanted.target_qps
    if wanted.target_latency_ms is not None:
        settings.server_target_latency_ns = round(wanted.target_latency_ms * 1e6)
    for name in ("min_duration_ms", "min_query_count"):
        if getattr(wanted, name) is not None:
            setattr(settings, name, getattr(wanted, name))
    in_memory = settings.performance_sample_count_override or samples
    settings.performance_sample_count_override = min(in_memory, samples)
    return settings


def needs_target(settings: Any, wanted: Wanted) -> bool:
    """Says whether neither a conf file nor a flag gave the target of the scenario."""
    name = "server_target_qps" if wanted.scenario == "Server" else "offline_expected_qps"
    return wanted.target_qps is None and getattr(settings, name) == _UNSET_QPS


def fill_target(settings: Any, wanted: Wanted, measured: float, flag: str, conf: str) -> None:
    """Sets the target that is missing, if it is, by what the system reached in a warm-up.

    Without performance as the aim, that of Server too.

    Args:
        settings: LoadGen's `TestSettings`, which is changed.
        wanted: What the user asked for.
        measured: Samples a second.
        flag: The flag that gives the target, for the error message.
        conf: The flag that names a conf file, for the error message.

    Raises:
        ValueError: The performance of Server is to be tested, and nobody said at which rate.
    """
    if not needs_target(settings, wanted):
        return
    if wanted.scenario == "Offline":
        settings.offline_expected_qps = _MARGIN * measured
    elif wanted.mode == "AccuracyOnly":
        settings.server_target_qps = _BEARABLE * measured
    else:
        raise ValueError(
            f"expected {flag}, or Server.target_qps in {conf}, found neither; the warm-up reached "
            f"{measured:,.3g} samples/s without a latency bound: try {_BEARABLE * measured:.3g}"
        )


def _check_conf_file(path: Path) -> None:
    """Names the bad line of a conf file, which LoadGen does not.

    Raises:
        ValueError: A line is neither a setting nor a comment.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if text and not text.startswith("#") and not _LINE.fullmatch(line.rstrip("\n")):
                raise ValueError(
                    f"{path}: line {number}: expected a line like *.Server.target_qps = 100, with "
                    f"blanks around =, found {text!r}"
                )
