"""One rank under horovodrun; rank 1 is killed while the others wait for it in an exchange."""

from __future__ import annotations

import os
import signal
import time

import tensorflow as tf

from collective import connect
from watch import Watch

collective = connect()
with Watch(collective, 60.0, catch_signals=True) as watch:
    watch.moved("step 0")
    collective.sum(tf.constant(1), name="first")
    if collective.rank == 1:
        time.sleep(1)
        print(f"killed at {time.time()}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    watch.moved("step 1")
    collective.sum(tf.constant(1), name="second")
