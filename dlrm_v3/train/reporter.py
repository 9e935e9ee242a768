"""Prints and records a training on a stream: as the DLRM's, with figures for each timestamp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm.metrics import Evaluation
from dlrm.reporting import Reporter
from dlrm_v3.quality import RankingQuality
from dlrm_v3.train.evaluation import StreamEvaluation
from dlrm_v3.train.plot import plot_stream

NAMES = ("normalised_entropy", "accuracy", "auc", "gauc", "log_loss")
_COLUMNS = ("timestamp", "NE", "accuracy", "AUC", "GAUC", "best NE", "best AUC", "candidates")


class StreamReporter(Reporter):
    """Reports one run; arguments and methods are those of `Reporter`, samples are requests."""

    SAMPLES = "requests"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._evaluations: list[StreamEvaluation] = []

    def evaluation(self, result: Evaluation) -> None:
        """Reports an evaluation in a line "Evaluate timestamp ...".

        Args:
            result: A `StreamEvaluation`. Its seconds do not count as training time.
        """
        assert isinstance(result, StreamEvaluation)
        if not self._active:
            return
        self._other_seconds += result.seconds
        self._last_evaluation = result
        self._evaluations.append(result)
        window, lifetime = result.window, result.lifetime
        self._console.line(
            f"Evaluate timestamp {result.timestamp}, test time: {result.seconds:.2f}s, "
            f"{_text(window.model)}; best possible NE: {window.best.normalised_entropy:.6f}, "
            f"AUC: {window.best.auc:.6f}; so far NE: {lifetime.model.normalised_entropy:.6f}, "
            f"AUC: {lifetime.model.auc:.6f}"
        )
        self._console.advance(result.step)
        fields = {
            f"{prefix}{name}": getattr(quality, name)
            for prefix, quality in (
                ("", window.model),
                ("best_", window.best),
                ("lifetime_", lifetime.model),
                ("lifetime_best_", lifetime.best),
            )
            for name in NAMES
        }
        others = {
            "timestamp": result.timestamp,
            "candidates": window.model.candidates,
            "requests": window.model.requests,
            "seconds": result.seconds,
        }
        self._records.record("evaluation", result.step, {**others, **fields}, fields)

    def table(self) -> str:
        """The evaluations as a Markdown table, and the figures over all of them."""
        lines = [_COLUMNS, (":---:",) * len(_COLUMNS)]
        for result in self._evaluations:
            lines.append((str(result.timestamp), *_cells(*result.window)))
        if self._evaluations:
            lines.append(("all", *_cells(*self._evaluations[-1].lifetime)))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _table(
        self, figures: Mapping[str, object], completed: int
    ) -> tuple[str, Mapping[str, object]]:
        """See `Reporter`."""
        return self.table(), figures

    def _quality(self) -> Mapping[str, object]:
        """See `Reporter`; the figures over all evaluations."""
        if not self._evaluations:
            return {}
        lifetime = self._evaluations[-1].lifetime
        return {
            **{name: getattr(lifetime.model, name) for name in NAMES},
            **{f"best_{name}": getattr(lifetime.best, name) for name in NAMES},
        }

    def _speed(self, samples_per_second: float) -> str:
        """See `Reporter`."""
        return f"{samples_per_second:,.1f}"

    def _draw(self, path: str) -> None:
        """See `Reporter`."""
        plot_stream(Path(path), self._history, self._evaluations)


def _text(quality: RankingQuality) -> str:
    return (
        f"NE: {quality.normalised_entropy:.6f}, accuracy: {quality.accuracy:.6f}, "
        f"AUC: {quality.auc:.6f}, GAUC: {quality.gauc:.6f}"
    )


def _cells(model: RankingQuality, best: RankingQuality) -> tuple[str, ...]:
    values = (model.normalised_entropy, model.accuracy, model.auc, model.gauc)
    bests = (best.normalised_entropy, best.auc)
    return (*(f"{value:.6f}" for value in (*values, *bests)), f"{model.candidates:,}")
