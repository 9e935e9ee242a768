"""One rank of a distributed evaluation: evaluate.py SCORES.npz FOLDER.

SCORES.npz holds what all ranks score; FOLDER gets a file of figures from each rank. The shares are
unequal: rank 0 has most of the samples, and only in its first batch has the last rank any.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from dlrm.distributed.connect import connect
from dlrm.train.evaluation import Evaluator


def main() -> None:
    """Scores this rank's share and writes the figures."""
    scores, folder = np.load(sys.argv[1]), Path(sys.argv[2])
    collective = connect()
    evaluator = Evaluator(8000, collective)
    batch, samples = int(scores["batch"]), len(scores["logits"])
    first = samples - batch // 2  # the last rank's share
    begin, end = (first, samples) if collective.rank == collective.size - 1 else (0, first)
    for step in range(-(-first // batch)):
        start = min(begin + step * batch, end)
        valid = min(batch, end - start)
        padding = [0, batch - valid]
        evaluator.add(
            tf.constant(np.pad(scores["logits"][start : start + valid], padding)),
            tf.constant(np.pad(scores["labels"][start : start + valid], padding)),
            tf.constant(valid),
        )
    figures = dataclasses.asdict(evaluator.result(step=7, seconds=1.5))
    (folder / f"{collective.rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
