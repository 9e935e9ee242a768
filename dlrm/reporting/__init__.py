"""What a run reports: console lines, the event log, TensorBoard files, results table and plot.

Independent of how training works, and without TensorFlow or Horovod. Heavy packages (rich,
matplotlib, tensorboard) are imported on first use.
"""

from __future__ import annotations

from dlrm.reporting.reporter import Reporter
from dlrm.reporting.results_table import results_table

__all__ = ["Reporter", "results_table"]
