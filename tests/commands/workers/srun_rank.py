"""A rank for launch.srun to become: it exchanges with the others and prints what it is."""

from __future__ import annotations

import json
import os
import sys

import horovod.tensorflow as hvd
import tensorflow as tf

hvd.init()
total = hvd.allreduce(tf.constant(10.0 ** hvd.rank()), op=hvd.Sum)
found = {
    "rank": [hvd.rank(), hvd.size()],
    "local": [hvd.local_rank(), hvd.local_size()],
    "cross": [hvd.cross_rank(), hvd.cross_size()],
    "total": float(total),
    "interface": os.environ["HOROVOD_GLOO_IFACE"],
    "arguments": sys.argv[1:],
}
print(json.dumps(found))
sys.exit(os.EX_TEMPFAIL if hvd.rank() else os.EX_OK)
