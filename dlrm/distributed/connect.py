"""Joins the ranks that a launcher started, and chooses what they exchange through.

How they exchange is left to `collective` and `host_collective`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from dlrm.distributed.collective import CYCLE_TIME, Collective, HorovodCollective
from dlrm.distributed.host_collective import connect_host, on_one_host

# The variables in which launchers state how many processes they started. SLURM_NTASKS is not among
# them: Slurm also sets it in a plain shell inside an allocation.
SIZE_VARIABLES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")

# Milliseconds: ranks that exchange without Horovod still pay for each of its cycles.
IDLE_CYCLE_TIME = 20.0


def launched_size(environment: Mapping[str, str]) -> int:
    """Returns how many processes a launcher says that it started; 1 without a launcher."""
    return max([int(environment[name]) for name in SIZE_VARIABLES if name in environment] or [1])


def connect(timeout: float = 600.0, *, timeline: bool = False) -> Collective:
    """Joins the other ranks, if there are any.

    Args:
        timeout: Seconds that a rank may wait for a message of another rank.
        timeline: Whether `Collective.start_timeline` may be called.

    Returns:
        The ranks; a `Collective` of one process if no launcher started several.

    Raises:
        ValueError: Several processes were started, but Horovod is missing or cannot see them.
    """
    launched = launched_size(os.environ)
    if launched == 1:
        collective = Collective()
    else:
        on_host = on_one_host(os.environ)
        try:
            collective = HorovodCollective(
                timeout,
                timeline=timeline and not on_host,
                cycle_time=IDLE_CYCLE_TIME if on_host else CYCLE_TIME,
            )
        except ImportError as error:
            raise ValueError(
                f"{launched} processes were started, but Horovod cannot be imported ({error}); "
                "run `make setup` and use the python3 of its environment"
            ) from error
        if collective.size != launched:
            raise ValueError(
                f"the launcher started {launched} processes, but Horovod sees {collective.size}: "
                "it was built without this launcher's protocol; start with horovodrun, or under "
                "Slurm with python3 -m launch.srun, or, for mpirun, build it with MPI: "
                "`make mpi-setup`"
            )
        collective = connect_host(
            collective, timeout, wanted=on_host and collective.local_size == collective.size
        )
    return collective
