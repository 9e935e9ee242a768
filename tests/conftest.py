"""Markers that follow from a test's folder or its other markers; the rest are at the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import ROOT

MARKERS_OF = {
    "commands": ("runs",),
    "multi_rank": ("multi_rank", "runs"),
    # What a fault does to processes is the same in both profiles, and so is the source.
    "faults": ("faults", "runs", "one_profile"),
    "rules": ("one_profile",),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test by the folder below tests/ that it is in, and what starts ranks or Spark."""
    for item in items:
        if any(map(item.get_closest_marker, ("multi_rank", "spark"))):
            item.add_marker("runs")
        folder = Path(item.path).relative_to(ROOT / "tests").parts[0]
        for marker in MARKERS_OF.get(folder, ()):
            item.add_marker(marker)
