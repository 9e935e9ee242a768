"""LoadGen's log files, as it writes them, on the screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.loadgen import summary

RULE = "=" * 48
TEXT = f"""{RULE}
MLPerf Results Summary
{RULE}
Scenario : Server
Result is : INVALID
  Performance constraints satisfied : NO
Recommendations:
 * Reduce target QPS to improve latency.

{RULE}
Additional Stats
{RULE}
99.00 percentile latency (ns)   : 70123456

{RULE}
Test Parameters Used
{RULE}
samples_per_query : 1
target_qps : 200.5
target_latency (ns): 60000000
min_duration (ms): 600000
qsl_rng_seed : 3

No warnings encountered during test.
"""


def logs(folder: Path, text: str, *events: dict[str, object]) -> Path:
    (folder / summary.SUMMARY).write_text(text)
    lines = (f":::MLLOG {json.dumps(event)}\n" for event in events)
    (folder / summary.DETAIL).write_text("".join(lines))
    return folder


def test_the_screen_shows_results_reasons_and_the_settings_that_matter(tmp_path: Path) -> None:
    assert summary.lines(logs(tmp_path, TEXT)) == [
        "MLPerf Results Summary",
        "Scenario : Server",
        "Result is : INVALID",
        "  Performance constraints satisfied : NO",
        "Recommendations:",
        " * Reduce target QPS to improve latency.",
        "Additional Stats",
        "99.00 percentile latency (ns)   : 70123456",
        "settings: target_qps 200.5, target_latency (ns) 60000000, min_duration (ms) 600000, "
        "samples_per_query 1",
    ]


@pytest.mark.parametrize(("word", "valid"), [("VALID", True), ("INVALID", False)])
def test_the_result_is_what_loadgen_says(tmp_path: Path, word: str, valid: bool) -> None:
    text = TEXT.replace("Result is : INVALID", f"Result is : {word}")
    assert summary.result(logs(tmp_path, text)) == valid


def test_a_summary_without_a_result_is_refused_with_the_errors(tmp_path: Path) -> None:
    events: list[dict[str, object]] = [
        {"key": "a", "value": 1, "metadata": {"is_error": False}},
        {"key": "b", "value": "no such setting", "metadata": {"is_error": True}},
    ]
    folder = logs(tmp_path, "No warnings encountered during test.\n", *events)
    assert summary.errors(folder) == ["no such setting"]
    with pytest.raises(ValueError, match="expected LoadGen's result.*no such setting"):
        summary.result(folder)


def test_logs_of_a_test_before_are_removed(tmp_path: Path) -> None:
    summary.remove(logs(tmp_path, TEXT))
    assert not list(tmp_path.iterdir())
