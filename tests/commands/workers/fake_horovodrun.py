"""Ends as horovodrun does, without ranks: what `launch` makes of that needs none.

FOLDER/plan.json, the folder being that of --checkpoint_dir, says what each start does: `lines` that
ranks write to standard error, the `code` of rank 1, a finished `checkpoint`, `seconds` it takes,
and whether it is `deaf` to SIGTERM, as is its child.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

folder = Path(next(word.partition("=")[2] for word in sys.argv if "checkpoint_dir=" in word))
number = len(list(folder.glob("argv.*")))
(folder / f"argv.{number}").write_text(json.dumps([time.time(), *sys.argv[1:]]))
start = json.loads((folder / "plan.json").read_text())[number]
if "checkpoint" in start:
    (folder / start["checkpoint"]).mkdir()
if start.get("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "60"], start_new_session=True)
print("[0]<stdout>:loss 0.5\r[0]<stdout>:loss 0.25", end="", flush=True)
time.sleep(start.get("seconds", 0))
for line in start.get("lines", ()):
    print(f"[1]<stderr>:{line}", file=sys.stderr)
code = start.get("code", 0)
if code:
    print(f"\nProcess 1 exit with status code {code}.")
    print("Process 0 exit with status code 143.")
sys.exit(1 if code else 0)
