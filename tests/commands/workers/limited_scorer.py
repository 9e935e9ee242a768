"""Scores samples as a server would: limited_scorer.py ARTIFACT FOLDER HOT_SHARE.

FOLDER holds dense.npy and ids.npy; requests of one sample each go to logits.npy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dlrm import cli
from serving.scorer import Scorer

artifact, folder, share = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])


def main() -> int:
    """Scores every sample; prints the lookups."""
    dense, ids = np.load(folder / "dense.npy"), np.load(folder / "ids.npy")
    with Scorer.open(artifact, hot_share=share) as scorer:
        logits = [scorer.score(dense[i : i + 1], ids[i : i + 1])[0] for i in range(len(ids))]
        print(*scorer.lookups())
    np.save(folder / "logits.npy", np.array(logits))
    return 0


sys.exit(cli.exit_code(main))
