"""A rank for launch to start, without TensorFlow: launched_rank.py --checkpoint_dir=FOLDER.

FOLDER/plan.json says what rank 1 does at each start: `die` while the others wait for it in C, or
`run` until a signal stops all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from dlrm.distributed.watchdog import Watchdog
from tests.multi_rank.workers.watched_rank import FolderCollective, die, wait_in_c

STEPS = 400  # of 50 ms

folder = Path(sys.argv[1].partition("=")[2])
rank, size = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
with open(folder / f"starts.{rank}", "a+") as starts:
    print(os.getpid(), file=starts, flush=True)
    starts.seek(0)
    start = len(starts.readlines())
act = json.loads((folder / "plan.json").read_text())[start - 1]
meeting = folder / f"start{start}"
meeting.mkdir(exist_ok=True)
collective: Any = FolderCollective({"folder": meeting, "size": size, "walled": []}, rank)
with Watchdog(collective, 60.0, catch_signals=True) as watchdog:
    for step in range(STEPS):
        watchdog.report_progress(f"step {step}")
        told = collective.gather_text(watchdog.signal)
        if any(told):
            (folder / f"told.{rank}").write_text(watchdog.signal)
            sys.exit(os.EX_TEMPFAIL)
        (folder / f"running.{start}.{rank}").touch()
        if act == "die" and step:
            (die if rank == 1 else wait_in_c)(watchdog)
        time.sleep(0.05)
