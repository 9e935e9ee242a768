"""Formats the report of verified data as text for one screen; it must not read files."""

from __future__ import annotations

from typing import Any

from dlrm.data.verify import DataPart, DataReport
from dlrm.formats.quantities import size_text


def screen(report: DataReport, seconds: float) -> str:
    """Returns a table of the parts, a table of the features, and the outcome.

    Args:
        report: The result of the checks.
        seconds: The duration of the checks.
    """
    lines = [*_parts(report), ""]
    if report.counts is not None:
        lines += [*_features(report), ""]
    lines += report.notes
    total = sum(data.file.rows * data.file.row_bytes for p in report.parts for data in p.files)
    what = f"level {report.level}, {size_text(total)} in {seconds:.1f} s"
    count = len(report.faults)
    return "\n".join([*lines, f"{f'{count} wrong' if count else 'all good'} ({what})"])


def _parts(report: DataReport) -> list[str]:
    """Returns a heading, and a line for each part."""
    description = report.description or {}
    notes = [f"rules {description['rules']}"] if "rules" in description else []
    if description.get("bad_rows"):
        notes.append(f"{description['bad_rows']:,} bad rows skipped")
    lines = [f"{report.folder}: {', '.join(notes)}" if notes else f"{report.folder}"]
    lines.append(f"{'part':<16}{'samples':>15}{'label 1':>10}{'size':>11}  files")
    for part in report.parts:
        total = sum(data.file.rows * data.file.row_bytes for data in part.files)
        compared = sum(data.file.path in report.compared for data in part.files)
        kind = f"{part.kind}, {compared} of {len(part.files)} as in checksums.json"
        lines.append(
            f"{part.name:<16}{part.samples:>15,}{_labels(part):>10}{size_text(total):>11}  {kind}"
        )
    return lines


def _labels(part: DataPart) -> str:
    if part.positives is None or not part.samples:
        return "-"
    return f"{part.positives / part.samples:.2%}"


def _features(report: DataReport) -> list[str]:
    """Returns a line for each feature; missing and unknown values are those of all rows.

    Unknown values are a share of the rows, or of the ids where a table has bags. What is not
    counted in very large tables is a dash.
    """
    counts, description = report.counts, report.description or {}
    assert counts is not None
    rows = sum(description.get("rows_by_file") or [])
    missing = description.get("missing_categories")
    unknown = description.get("unknown_categories")
    names = ", ".join(part.name for part in report.counted)
    lines = [
        f"ids of {names}; missing and unknown values as records.json counts them",
        _line("feature", "table rows", "ids seen", "ten hottest", "missing", "unknown"),
    ]
    bags = {bag["table"] for bag in description.get("bags", [])}
    for table, size in enumerate(counts.vocab_sizes):
        if not counts.counts(table):
            seen = ("-", "-", _share(missing, table, rows), "-")
            lines.append(_line(f"{table}", f"{size:,}", *seen))
            continue
        ids = int(counts.of_table(table).sum()) if table in bags else rows
        lines.append(
            _line(
                f"{table}",
                f"{size:,}",
                f"{counts.rows_seen(table):,}",
                f"{counts.hottest_share(table):.2%}",
                _share(missing, table, rows),
                _share(unknown, table, ids),
            )
        )
    return lines


def _line(*cells: str) -> str:
    return "".join(cell.rjust(width) for cell, width in zip(cells, (7, 14, 13, 13, 9, 9)))


def _share(counts: Any, table: int, total: int) -> str:
    if not isinstance(counts, list) or table >= len(counts) or not total:
        return "-"
    return f"{counts[table] / total:.2%}"
