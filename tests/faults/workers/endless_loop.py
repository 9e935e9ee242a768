"""Runs main.py, but one rank loops endlessly at one step: endless_loop.py RANK STEP --FLAGS."""

from __future__ import annotations

import os
import sys

from absl import app

import main
from dlrm.optim.schedule import Schedule

learning_rate = Schedule.learning_rate


def loop_at(at: int) -> None:
    """Makes the training ask endlessly for the learning rate of a step."""

    def replaced(self: Schedule, step: int) -> float:
        while step == at:
            pass
        return learning_rate(self, step)

    Schedule.learning_rate = replaced  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, step = int(sys.argv.pop(1)), int(sys.argv.pop(1))
    if rank == int(os.environ.get("HOROVOD_RANK", "0")):
        loop_at(step)
    main.define_flags()
    app.run(main.main)
