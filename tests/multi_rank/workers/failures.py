"""One rank that meets many bad inputs, one after the other: failures.py CASES.json FOLDER.

CASES.json holds `cases`, the arguments of main.py by name, each of which must fail on all ranks
together or on none, and `stopped`, arguments of a run that must stop at its second step. FOLDER
gets a file from each rank: exit code and standard error of each case, and what became of the
weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

import main
from dataset import open_data
from dlrm.config import Config
from dlrm.distributed.connect import connect
from dlrm.train.build import build_trainer
from dlrm.train.callback import Callback
from dlrm.train.loop import Trainer, TrainingError
from model import build_model


def parse(arguments: list[str]) -> None:
    """Sets the flags; those of the case before are forgotten."""
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS(["main.py", *arguments])


def outcome(arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard error of main.py."""
    parse(arguments)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = main.main(["main.py"])
    return code, errors.getvalue()


def weights(trainer: Trainer) -> list[np.ndarray[Any, Any]]:
    """Copies of all dense weights and of this rank's rows."""
    return [
        *(variable.numpy() for variable in trainer.step.dense.values()),
        trainer.step.embedding.read_rows(0, trainer.step.embedding.local_rows),
    ]


def stopped(config: Config) -> dict[str, Any]:
    """Compares the weights of a run that is refused its second step with one of a single step."""
    collective = connect()
    data = open_data(config, collective.rank, collective.size)

    def train(config: Config) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]], str]:
        trainer = build_trainer(config, "alltoall", collective, data, build_model)
        begin, message = weights(trainer), ""
        try:
            trainer.train([data.train], data.test, Callback())
        except TrainingError as error:
            message = str(error)
        return begin, weights(trainer), message

    begin, one_step, _ = train(config.replace(early_stop=1))
    _, after_stop, message = train(config)
    return {
        "message": message,
        "moved in one step": [not np.array_equal(a, b) for a, b in zip(begin, one_step)],
        "equal to one step": [np.array_equal(a, b) for a, b in zip(after_stop, one_step)],
    }


if __name__ == "__main__":
    tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(0)
    plan, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    main.define_flags()
    found: dict[str, Any] = {name: outcome(case) for name, case in plan["cases"].items()}
    parse(plan["stopped"])
    found["stopped"] = stopped(main.config_from_flags())
    (folder / f"{connect().rank}.json").write_text(json.dumps(found))
