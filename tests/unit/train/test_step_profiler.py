"""Which steps are taken in parts, and what is kept of them."""

from __future__ import annotations

import glob

import numpy as np
import pytest

from dlrm.config import Config
from dlrm.distributed.collective import Collective
from dlrm.train import step_profiler
from dlrm.train.build import NSYS, build_instruments
from dlrm.train.instruments import DATA, Instruments, StepInputs
from dlrm.train.staged_step import PARTS
from dlrm.train.step_profiler import StepProfiler, Trace
from tests.support.small_model import make_batches, small_step

PERIOD = 8


@pytest.fixture(scope="module")
def step():
    return small_step()


@pytest.fixture(autouse=True)
def short_periods(monkeypatch):
    """Of steps 0 to 7, 0 and 1 are timed as they are; 2 warms up, 3 counts."""
    monkeypatch.setattr(step_profiler, "PERIOD", PERIOD)
    monkeypatch.setattr(step_profiler, "PLAIN", range(2))
    monkeypatch.setattr(step_profiler, "WARM_UP", 2)
    monkeypatch.setattr(step_profiler, "STAGED", 3)


def profiler_of(step, **settings) -> StepProfiler:
    defaults = {"shown": range(0), "trace": None, "breakdown": False, "folder": None}
    return StepProfiler(
        step, Collective(), products_seconds=lambda: 0.25, **{**defaults, **settings}
    )


def staged_steps(step, profiler: StepProfiler, count: int, first: int = 0) -> list[int]:
    """Takes steps; returns which of them, from 0, were not taken by the step itself."""
    (batch,) = make_batches(1)
    plain = []

    def train(*inputs):
        plain.append(number)
        return step.train(*inputs)

    routes = step.route(batch.ids)
    for number in range(count):
        with profiler.phase(DATA):
            pass
        inputs = StepInputs(batch.dense, batch.labels, routes, batch.ids, 0.1, 0.0)
        _, routes = profiler.take(first + number, train, inputs)
    profiler.stop()
    return sorted(set(range(count)) - set(plain))


def test_the_breakdown_takes_one_step_of_a_period_in_parts_after_one_that_warms_up(step):
    profiler = profiler_of(step, breakdown=True)
    assert staged_steps(step, profiler, 2 * PERIOD + 4, first=1000) == [2, 3, 11, 19]
    text = "\n".join(profiler.report())
    assert "3 steps taken in parts, on 1 rank" in text
    assert "median of 6" in text
    assert "250.00 ms" in text
    for part in (DATA, *PARTS):
        assert f"| {part} " in text


def test_a_short_run_has_no_breakdown(step):
    profiler = profiler_of(step, breakdown=True)
    staged_steps(step, profiler, 3)
    (line,) = profiler.report()
    assert line.startswith("no step breakdown: of every 8 steps, it measures the one after step 3")


def test_every_second_shown_step_is_taken_in_parts_and_not_measured(step, tmp_path):
    profiler = profiler_of(step, shown=range(2, 6), breakdown=True, folder=str(tmp_path))
    assert staged_steps(step, profiler, PERIOD) == [3, 5]
    assert profiler.report()[0].startswith("no step breakdown")


def test_writes_a_profile_that_names_steps_and_parts(step, tmp_path):
    trace = Trace(str(tmp_path / "profile"), Collective())
    profiler = profiler_of(step, shown=range(1, 3), trace=trace)
    staged_steps(step, profiler, 4)
    assert str(tmp_path) in profiler.report()[0]
    (path,) = glob.glob(f"{tmp_path}/profile/rank0/plugins/profile/*/*.xplane.pb")
    profile = np.fromfile(path, np.uint8).tobytes()
    for name in ("step", "step in parts", *PARTS):
        assert name.encode() in profile


def test_a_run_that_ends_before_the_profile_says_so(step, tmp_path):
    trace = Trace(str(tmp_path), Collective())
    profiler = profiler_of(step, shown=range(5, 9), trace=trace)
    staged_steps(step, profiler, 3)
    assert profiler.report() == ["no step was profiled: the run ended before"]


class OneOfTwo(Collective):
    """A rank beside one that Nsight Systems watches."""

    def gather_text(self, text: str) -> list[str]:
        return [text, "watched"]


def test_all_ranks_take_the_same_steps_if_one_alone_is_watched(step, monkeypatch):
    for variable in NSYS:
        monkeypatch.delenv(variable, raising=False)
    config = Config.of(use_synthetic_dataset=True)
    assert type(build_instruments(config, step, Collective(), 1)) is Instruments
    found = build_instruments(config, step, OneOfTwo(), 1)
    assert staged_steps(step, found, 20) == [11, 13, 15, 17, 19]
    assert found.note.startswith("Nsight Systems watches")
