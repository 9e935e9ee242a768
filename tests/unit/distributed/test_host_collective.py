"""When ranks exchange without Horovod. That they do it right is in tests/multi_rank."""

from __future__ import annotations

import pytest
import tensorflow as tf

from dlrm.distributed.collective import Collective
from dlrm.distributed.host_collective import EXCHANGE_VARIABLE, connect_host, on_one_host

HOROVODRUN = {"HOROVOD_SIZE": "4", "HOROVOD_LOCAL_SIZE": "4"}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
MPICH = {"PMI_SIZE": "4", "MPI_LOCALNRANKS": "4"}


@pytest.mark.parametrize("launcher", [HOROVODRUN, MPIRUN, MPICH])
def test_all_ranks_on_one_host_without_gpus(launcher: dict[str, str]) -> None:
    assert on_one_host(launcher)
    size, local_size = launcher
    assert not on_one_host({**launcher, local_size: "2"})
    assert not on_one_host({size: "4"})  # it does not say


@pytest.mark.parametrize("chosen", [{EXCHANGE_VARIABLE: "horovod"}, {"HOROVOD_TIMELINE": "a.json"}])
def test_the_user_may_choose_horovod(chosen: dict[str, str]) -> None:
    assert not on_one_host({**HOROVODRUN, **chosen})


def test_ranks_with_gpus_keep_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    assert not on_one_host(HOROVODRUN)


class TwoRanksOneUnwilling(Collective):
    """Rank 0 of two, the other of which wants Horovod."""

    size = 2

    def gather_text(self, text: str) -> list[str]:
        """Returns this rank's text, and nothing of the other."""
        return [text, ""]


def test_one_rank_that_wants_horovod_decides_for_all() -> None:
    horovod = TwoRanksOneUnwilling()
    assert connect_host(horovod, 1.0, wanted=True) is horovod
    assert connect_host(horovod, 1.0, wanted=False) is horovod
