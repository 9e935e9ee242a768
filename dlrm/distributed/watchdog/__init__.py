"""The watchdog: ends every rank of a job, quickly and with the reason, once one of them fails.

TensorFlow-free; independent of what the ranks compute.
"""

from dlrm.distributed.watchdog.watchdog import Watchdog

__all__ = ["Watchdog"]
