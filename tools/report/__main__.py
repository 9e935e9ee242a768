"""`python3 -m tools.report RUN_OR_CHECKPOINT --data_dir=DATA`: writes a page about a model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dlrm import cli


def _parser() -> argparse.ArgumentParser:
    text = (
        "Write one HTML page about a trained model: AUC, log loss, calibration, importance of each "
        "column, and with --auc_by the AUC of each group. It scores the test data in float32."
    )
    parser = cli.Parser(prog="python3 -m tools.report", description=text)
    parser.add_argument(
        "model",
        type=Path,
        metavar="RUN_OR_CHECKPOINT",
        help="a checkpoint, a --checkpoint_dir or a --run_dir, whose newest checkpoint is used",
    )
    flag = parser.add_argument
    flag("--data_dir", type=Path, required=True, help="the data, with its folder `test`")
    flag("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    flag("--auc_by", type=int, metavar="COLUMN", help="categorical column of the groups, from 0")
    flag("--groups", type=int, default=20, help="groups that are listed (default: 20)")
    flag(
        "--group_samples",
        type=int,
        default=100,
        help="samples that a listed group has at least (default: 100)",
    )
    flag("--bins", type=int, default=20, help="bins of the calibration (default: 20)")
    flag(
        "--importance_samples",
        type=int,
        default=20_000,
        help="samples in which columns are shuffled (default: 20000)",
    )
    flag("--repeats", type=int, default=3, help="shuffles of each column (default: 3)")
    flag("--seed", type=int, default=0, help="seed of the shuffles (default: 0)")
    return parser


def _checkpoint_of(path: Path) -> Path:
    """The newest checkpoint of a run, or what `newest` finds."""
    from dlrm.checkpoint.describe import newest

    events = path / "events.jsonl"
    if not events.is_file():
        return newest(path)
    folder = None
    for line in events.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line that a crash cut short
        if event.get("event") == "start":
            folder = event["settings"]["checkpoint_dir"]
    if folder is None:
        raise ValueError(
            f"{path}: expected a run with --checkpoint_dir, found one that wrote no checkpoint; "
            "train with it, or name a checkpoint"
        )
    return newest(Path(folder))


def _check(flags: argparse.Namespace) -> None:
    for name in ("groups", "group_samples", "bins", "importance_samples", "repeats"):
        if getattr(flags, name) < 1:
            raise ValueError(f"--{name}: expected 1 or more, found {getattr(flags, name)}")
    if flags.seed < 0:
        raise ValueError(f"--seed: expected 0 or more, found {flags.seed}")


def _write(flags: argparse.Namespace) -> int:
    _check(flags)
    from dlrm.formats import atomic_files
    from dlrm.metrics import probabilities, quality_of
    from tools.report.figures import calibration, groups_of
    from tools.report.page import GroupSection, ImportanceSection, render
    from tools.report.scores import ReportedModel

    checkpoint = _checkpoint_of(flags.model)
    reported = ReportedModel(checkpoint, flags.data_dir / "test")
    model = reported.manifest.model
    tables = len(model.vocab_sizes)
    if flags.auc_by is not None and not 0 <= flags.auc_by < tables:
        raise ValueError(
            f"--auc_by: expected a categorical column from 0 to {tables - 1}, found {flags.auc_by}"
        )
    scored = reported.score(flags.auc_by)
    quality = quality_of(scored.logits, scored.labels)
    predictions = probabilities(scored.logits)
    columns = []
    for column in reported.importance(flags.importance_samples, flags.repeats, flags.seed):
        columns.append(column)
        print(f"{column.name}: AUC lost {column.mean:+.6f}", flush=True)
    groups = None
    if scored.groups is not None:
        found = groups_of(scored.groups, predictions, scored.labels)
        groups = GroupSection(flags.auc_by, found, flags.groups, flags.group_samples)
    page = render(
        "Report of a model",
        (
            ("checkpoint", str(checkpoint)),
            ("steps", f"{reported.manifest.position.step:,}"),
            ("interaction", model.interaction),
            ("test data", str(flags.data_dir / "test")),
        ),
        quality,
        calibration(predictions, scored.labels, flags.bins),
        ImportanceSection(
            columns,
            min(flags.importance_samples, reported.samples.num_samples),
            flags.repeats,
            flags.seed,
        ),
        groups,
    )
    atomic_files.write_text(flags.out, page)
    print(f"AUC {quality.auc:.6f} of {quality.samples:,} samples; the page: {flags.out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Writes the page; returns the exit code."""
    return cli.exit_code(lambda: _write(_parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
