"""Spans of a test: times by batch, and a trace that a viewer of Chrome's traces can draw."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from serving.loadgen.timeline import Timeline

pytestmark = pytest.mark.one_profile


@pytest.fixture
def timeline() -> Timeline:
    """Two batches: the first waits from 1 s to 3 s, the second from 2 s to 2.5 s."""
    timeline = Timeline()
    for batch, (start, end) in enumerate([(1.0, 3.0), (2.0, 2.5)]):
        with timeline.batch(batch):
            timeline.waited("queue", start, end)
            timeline.waited("ready", end, end + 1)
    return timeline


def test_times_are_summed_by_batch(timeline: Timeline) -> None:
    assert timeline.seconds("queue").tolist() == [2, 0.5]
    assert timeline.seconds("queue", "ready").tolist() == [3, 1.5]
    assert timeline.seconds("dense").tolist() == []


def test_what_belongs_to_no_batch_is_not_kept(timeline: Timeline) -> None:
    with timeline.span("dense"):
        pass
    with Timeline(recording=False).batch(3), timeline.span("dense"):
        pass
    assert timeline.seconds("dense").tolist() == []


def test_a_trace_has_a_track_for_each_thread_and_waits_apart(
    timeline: Timeline, tmp_path: Path
) -> None:
    def work(batch: int) -> None:
        with timeline.batch(batch), timeline.span("prediction"), timeline.span("dense"):
            threading.Event().wait(0.01)

    threads = [threading.Thread(target=work, name=f"scoring-{n}", args=[n]) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timeline.write_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert sorted(names.values()) == ["scoring-0", "scoring-1"]
    spans = [e for e in events if e["ph"] == "X"]
    for track, name in names.items():
        (outer,) = [e for e in spans if e["tid"] == track and e["name"] == "prediction"]
        (inner,) = [e for e in spans if e["tid"] == track and e["name"] == "dense"]
        assert outer["args"] == inner["args"] == {"batch": int(name[-1])}
        # A viewer draws one in the other.
        assert outer["ts"] <= inner["ts"]
        assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
        assert inner["dur"] >= 10_000
    begun = {e["id"]: e for e in events if e["ph"] == "b"}
    ended = {e["id"]: e for e in events if e["ph"] == "e"}
    assert begun.keys() == ended.keys()
    lengths = [ended[key]["ts"] - begun[key]["ts"] for key in begun]
    np.testing.assert_allclose(sorted(lengths), [0.5e6, 1e6, 1e6, 2e6])
    assert min(e["ts"] for e in events if e["ph"] != "M") == 0


def test_an_empty_trace_is_valid(tmp_path: Path) -> None:
    Timeline().write_trace(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []
