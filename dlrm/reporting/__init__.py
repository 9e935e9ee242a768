"""What a run tells its user: console lines, event files, the results table, the picture.

Knows nothing of how training works and imports neither TensorFlow nor Horovod. Everything
heavy (rich, matplotlib, tensorboard) is imported on first use.
"""

from __future__ import annotations

from dlrm.reporting.reporter import EvaluationResult, Reporter
from dlrm.reporting.results_table import results_table

__all__ = ["EvaluationResult", "Reporter", "results_table"]
