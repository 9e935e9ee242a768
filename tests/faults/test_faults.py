"""The fast part of the fault suite: one trial of each fault, with few starts of ranks.

`make faults` tries all of them, and more often. Ranks that hang are in test_watchdog.py, faster.
"""

from __future__ import annotations

import time

import pytest

from dlrm.checkpoint import directory
from tests.faults import suite
from tests.support import jobs

# On one rank where others do nothing else.
TRIALS = {
    "signal_in_training": 2,
    "killed_at_save_points": 2,
    "disk_full": 1,
    "read_only": 1,
    "damaged": 1,
    "other_shape": 1,
    "other_data": 1,
    "not_finite": 1,
    "launch_restarts": 2,
}
# test_launch.py restarts real ranks too, and quicker; signal_in_training goes on from a checkpoint.
SLOW = {"launch_restarts"}


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> jobs.Baseline:
    return jobs.Baseline(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in TRIALS]
)
def test_keeps_its_promise(name: str, baseline: jobs.Baseline) -> None:
    seed = str(time.time_ns())
    print("seed", seed)
    print(suite.attempt(baseline, name, TRIALS[name], seed))


def test_the_weights_of_another_step_are_other_weights(baseline: jobs.Baseline) -> None:
    """What `the same end` is worth: a single step more or less would be seen."""
    checkpoints = directory.finished(baseline.uninterrupted(2))
    assert [directory.step_of(path) for path in checkpoints][-1] == jobs.STEPS
    assert not jobs.same(*map(jobs.weights, checkpoints[-2:]))
