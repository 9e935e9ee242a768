"""The collective of a single process, and how a run decides which collective it gets.

Several ranks are in tests/multi_rank/test_collective.py.
"""

from __future__ import annotations

import sys

import pytest
import tensorflow as tf

from dlrm.distributed.collective import Collective, HorovodCollective
from dlrm.distributed.connect import SIZE_VARIABLES, connect, launched_size


class TwoRanks(Collective):
    """Rank 0 of two, the other of which sends a fixed text."""

    size = 2

    def __init__(self, other: str) -> None:
        self.other = other

    def gather_text(self, text: str) -> list[str]:
        """Returns this rank's text and the other's."""
        return [text, self.other]


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SIZE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_alone_every_exchange_is_the_identity() -> None:
    collective = Collective()
    rows, counts = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([2])
    assert collective.mean([rows], "mean")[0] is rows
    assert collective.sum(rows, "sum") is rows
    received, received_counts = collective.alltoall(rows, counts, "exchange")
    assert received is rows
    assert received_counts is counts
    assert collective.gather_text("text") == ["text"]
    variable = tf.Variable(3.0)
    collective.broadcast([variable])
    assert variable.numpy() == 3.0


def test_together_returns_what_the_action_returns() -> None:
    assert Collective().together(lambda: 42) == 42
    assert TwoRanks("").together(lambda: 42) == 42


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_an_error_of_this_rank_is_raised_with_its_rank(kind: type[Exception]) -> None:
    def fail() -> None:
        raise kind("train/label.bin: expected 8 bytes, found 4")

    with pytest.raises(ValueError, match=r"^train/label.bin: expected 8 bytes, found 4$"):
        Collective().together(fail)
    with pytest.raises(ValueError, match=r"^rank 0: train/label.bin: expected"):
        TwoRanks("").together(fail)


def test_an_error_of_another_rank_stops_this_one_too() -> None:
    with pytest.raises(ValueError, match=r"^rank 1: no space left$"):
        TwoRanks("no space left").together(lambda: 42)


def test_other_errors_are_not_caught() -> None:
    with pytest.raises(ZeroDivisionError):
        Collective().together(lambda: 1 / 0)


def test_ranks_that_disagree_are_told_both_values() -> None:
    TwoRanks("8").agree("global_batch_size", 8)
    with pytest.raises(ValueError, match=r"found 8 on rank 0 and 16 on rank 1"):
        TwoRanks("16").agree("global_batch_size", 8)


@pytest.mark.parametrize("name", SIZE_VARIABLES)
def test_each_launcher_states_its_size(name: str) -> None:
    assert launched_size({name: "4"}) == 4


def test_without_a_launcher_there_is_one_process(no_launcher: None) -> None:
    assert launched_size({}) == 1
    assert launched_size({"SLURM_NTASKS": "8"}) == 1  # a shell inside an allocation
    found = connect()
    assert type(found) is Collective
    assert (found.rank, found.size, found.local_rank, found.local_size) == (0, 1, 0, 1)


def test_a_launcher_without_horovod_is_refused(
    no_launcher: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(ValueError, match=r"2 processes were started, but Horovod cannot be"):
        connect()


def test_a_launcher_that_horovod_cannot_see_is_refused(
    no_launcher: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under mpirun, with a Horovod built for Gloo alone: every process would train alone."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(HorovodCollective, "__init__", lambda *args, **options: None)
    with pytest.raises(ValueError, match=r"started 2 processes, but Horovod sees 1.*horovodrun"):
        connect()
