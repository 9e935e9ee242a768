"""LoadGen's settings: MLPerf's values, then conf files, then flags; errors name file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.loadgen.settings import Wanted, fill_target, make_settings, needs_target

pytestmark = pytest.mark.one_profile


def wanted(*conf_files: Path, **flags: object) -> Wanted:
    values: dict[str, object] = {
        "scenario": "Server",
        "mode": "PerformanceOnly",
        "benchmark": "dlrm",
        "target_qps": None,
        "target_latency_ms": None,
        "min_duration_ms": None,
        "min_query_count": None,
    }
    return Wanted(conf_files=conf_files, **{**values, **flags})  # type: ignore[arg-type]


def test_mlperf_values_are_the_default() -> None:
    settings = make_settings(wanted(), samples=10**6)
    assert settings.qsl_rng_seed == 2085463073848966840
    assert settings.sample_index_rng_seed == 2747215439041700203
    assert settings.schedule_rng_seed == 16159082839903944936
    assert settings.performance_sample_count_override == 204_800
    assert settings.server_target_latency_ns == 60_000_000
    assert settings.server_target_latency_percentile == 0.99
    assert settings.min_duration_ms == 600_000
    offline = make_settings(wanted(scenario="Offline", benchmark="dlrm-v2"), samples=10**6)
    assert offline.min_query_count == 24_576


def test_no_more_samples_are_loaded_than_there_are() -> None:
    assert make_settings(wanted(), samples=77).performance_sample_count_override == 77


def test_conf_files_override_mlperf_and_flags_override_both(tmp_path: Path) -> None:
    path = tmp_path / "user.conf"
    path.write_text(
        "# ours\n*.Server.target_qps = 300.5\ndlrm.Server.target_latency = 30\n"
        "*.*.min_duration = 9000\n"
    )
    settings = make_settings(wanted(path), samples=10)
    assert settings.server_target_qps == 300.5
    assert settings.server_target_latency_ns == 30_000_000
    assert settings.min_duration_ms == 9000
    assert not needs_target(settings, wanted(path))
    settings = make_settings(wanted(path, target_qps=50.0, min_duration_ms=1000), samples=10)
    assert settings.server_target_qps == 50
    assert settings.min_duration_ms == 1000
    assert settings.server_target_latency_ns == 30_000_000
    flags = {"target_latency_ms": 7.5, "min_query_count": 12}
    settings = make_settings(wanted(path, **flags), samples=10)
    assert settings.server_target_latency_ns == 7_500_000
    assert settings.min_query_count == 12
    assert settings.server_target_qps == 300.5


@pytest.mark.parametrize("scenario", ["Server", "Offline"])
def test_a_target_that_nobody_gave_is_missed(scenario: str) -> None:
    assert needs_target(make_settings(wanted(scenario=scenario), 10), wanted(scenario=scenario))


@pytest.mark.parametrize(
    "line", ["*.Server.target_qps=300", "target_qps = 300", "*.Server.target_qps =", "a b c"]
)
def test_a_bad_line_of_a_conf_file_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "user.conf"
    path.write_text(f"*.Server.target_qps = 3\n{line}\n")
    with pytest.raises(ValueError, match=r"user\.conf: line 2: expected a line like"):
        make_settings(wanted(path), samples=10)


def test_a_value_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "user.conf"
    path.write_text("*.Server.target_qps = many\n")
    with pytest.raises(ValueError, match="user.conf"):
        make_settings(wanted(path), samples=10)


def test_the_peak_of_offline_is_its_result() -> None:
    with pytest.raises(ValueError, match="expected --scenario=Server"):
        make_settings(wanted(scenario="Offline", mode="FindPeakPerformance"), samples=10)


def test_a_missing_target_is_what_was_measured() -> None:
    """With a margin, as Offline's samples must last; a Server must be told."""

    def filled(**flags: object) -> Any:
        asked = wanted(**flags)
        settings = make_settings(asked, samples=10)
        fill_target(settings, asked, 200, "--target_qps", "--user_conf")
        return settings

    assert filled(scenario="Offline").offline_expected_qps == 250
    assert filled(scenario="Offline", target_qps=7.0).offline_expected_qps == 7
    assert filled(mode="AccuracyOnly").server_target_qps == 120
    assert filled(target_qps=7.0).server_target_qps == 7
    with pytest.raises(ValueError, match="expected --target_qps, or .*reached 200 .*: try 120"):
        filled()
