"""The results table of the SOK DLRM benchmark and the numbers in it.

Formats settings and measured values; prints and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

_COLUMNS = (
    ("batch size", "batch_size"),
    ("exit criteria", "exit_criterion"),
    ("frequent of evaluation", "evaluation_frequency"),
    ("xla", "xla"),
    ("custom interact", "custom_interact"),
    ("amp", "amp"),
    ("compress", "compress"),
    ("training time (minutes)", "training_minutes"),
    ("evaluating time (minutes)", "evaluation_minutes"),
    ("total time (minutes)", "total_minutes"),
    ("average time of iteration (ms)", "ms_per_iteration"),
    ("throughput(samples/second)", "samples_per_second"),
)


def settings_columns(settings: Mapping[str, object], global_batch: int) -> dict[str, object]:
    """Makes the columns of the results table that depend on the settings alone.

    Args:
        settings: The run's flags by name, as for `Reporter`.
        global_batch: Number of samples in a step, over all ranks.

    Returns:
        Values by the table's keys.
    """
    interval = settings.get("eval_interval")
    at_end = bool(settings.get("eval_in_last")) or not interval
    switches = ("xla", "custom_interact", "amp", "compress")
    return {
        "batch_size": global_batch,
        "evaluation_frequency": "at end" if at_end else f"every {interval} steps",
        **{name: bool(settings.get(name)) for name in switches},
    }


def results_table(rows: Iterable[Mapping[str, object]]) -> str:
    """Makes the table of the SOK DLRM benchmark's README, as Markdown.

    Args:
        rows: Values by key for each row, as the event "result" holds them.

    Returns:
        Header, alignment and one line per row, without a final newline.
    """
    lines = [[title for title, _ in _COLUMNS], [":---:"] * len(_COLUMNS)]
    lines += [[_cell(key, row[key]) for _, key in _COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(values: Mapping[str, object]) -> str:
    """Writes values as a Markdown list.

    Args:
        values: The values by their names, whose underscores become blanks.
    """
    lines = (f"- {name.replace('_', ' ')}: {_text(value)}" for name, value in values.items())
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def exit_criterion(settings: Mapping[str, object], completed_steps: int, auc: float | None) -> str:
    """Says in the words of the table what ended a run.

    Args:
        settings: The run's flags by name, as for `Reporter`.
        completed_steps: Number of steps done at the end of the run.
        auc: AUC of the last evaluation; None if there was none.

    Returns:
        "AUC > 0.8025" only if an evaluation that could stop the run reached it; otherwise the
        number of steps if `early_stop` set it, otherwise the number of epochs.
    """
    target, early_stop = settings.get("auc_target"), settings.get("early_stop")
    reached = auc is not None and isinstance(target, (int, float)) and auc > target
    if reached and not settings.get("eval_in_last"):
        return f"AUC > {target:g}"
    if isinstance(early_stop, int) and 0 < early_stop <= completed_steps:
        return f"{early_stop} steps"
    epochs = settings.get("epochs") or 1
    return f"{epochs} epoch{'' if epochs == 1 else 's'}"


def ratio(numerator: float, denominator: float) -> float:
    """Divides; NaN if the denominator is not positive."""
    return numerator / denominator if denominator > 0 else math.nan


def millions(samples_per_second: float) -> str:
    """Formats a throughput as the benchmark does, such as "12.08M"."""
    value = samples_per_second / 1e6
    # With two digits, a laptop's throughput would be zero.
    return f"{value:.4f}M" if value < 0.1 else f"{value:.2f}M"


def _cell(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return millions(value) if key == "samples_per_second" else f"{value:.2f}"
    return str(value)
