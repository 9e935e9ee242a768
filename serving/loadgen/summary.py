"""LoadGen's summary and errors, as its log files hold them, for the screen.

It must not know how a test is run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

SUMMARY, DETAIL, ACCURACY = (
    f"mlperf_log_{name}" for name in ("summary.txt", "detail.txt", "accuracy.json")
)
_PREFIX = ":::MLLOG "
_SETTINGS_HEADING = "Test Parameters Used"
_NAMED = re.compile(r"^(\w+(?: \(\w+\))?) ?: *(\S+)$", re.MULTILINE)
_SHOWN = (
    *("target_qps", "target_latency (ns)", "min_duration (ms)", "min_query_count"),
    *("samples_per_query", "performance_sample_count"),
)


def remove(output: Path) -> None:
    """Removes the logs of a test before, so that none is taken for those of the next."""
    for name in (SUMMARY, DETAIL, ACCURACY):
        (output / name).unlink(missing_ok=True)


def result(output: Path) -> bool:
    """Says whether LoadGen's result is VALID.

    Raises:
        OSError: There is no summary.
        ValueError: The summary holds no result.
    """
    if (found := values(output).get("Result is")) is not None:
        return found == "VALID"
    path = output / SUMMARY
    reasons = "; ".join(errors(output)) or "none"
    raise ValueError(f"{path}: expected LoadGen's result, found none; its errors: {reasons}")


def values(output: Path) -> dict[str, str]:
    """The named values of the summary, such as `Result is`, as they are written.

    Raises:
        OSError: There is no summary.
    """
    text = (output / SUMMARY).read_text(encoding="utf-8", errors="replace")
    parts = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in parts if value.strip()}


def lines(output: Path) -> list[str]:
    """The summary without rules and empty lines, and of its settings those that matter here.

    Raises:
        OSError: There is no summary.
    """
    text = (output / SUMMARY).read_text(encoding="utf-8", errors="replace")
    head, _, settings = text.partition(_SETTINGS_HEADING)
    values = dict(_NAMED.findall(settings))
    shown = ", ".join(f"{name} {values[name]}" for name in _SHOWN if name in values)
    found = [line for line in head.splitlines() if line.strip("= ")]
    return [*found, f"settings: {shown}"] if shown else found


def report(output: Path) -> list[str]:
    """What people should see of a test: its summary, and LoadGen's errors, each once.

    Raises:
        OSError: There is no summary.
    """
    return [
        *lines(output),
        *(f"LoadGen's error: {error}" for error in dict.fromkeys(errors(output))),
    ]


def errors(output: Path) -> list[str]:
    """The errors in LoadGen's detailed log, in order."""
    found = []
    with (output / DETAIL).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(_PREFIX) and '"is_error": true' in line:
                found.append(str(json.loads(line[len(_PREFIX) :])["value"]))
    return found
