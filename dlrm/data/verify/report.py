"""Combines the checks: sizes of all files, and the content of this rank's share of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dlrm.data.verify.check_values import check_contents
from dlrm.data.verify.count_ids import IdCounts
from dlrm.data.verify.find_files import REWRITE, DataFile, DataPart, find_parts, read_sums
from dlrm.formats.checksums import FileSum, sum_of
from dlrm.formats.file_names import CHECKSUMS, StrPath

LEVELS = ("size", "full")
_REWRITE_OR_REMOVE = f"{REWRITE}, or remove {CHECKSUMS} if you changed the data on purpose"


@dataclass
class DataReport:
    """What a check of data found.

    Attributes:
        folder: The folder that was checked.
        level: Whether sizes or every byte were checked: `size` or `full`.
        parts: The sets of samples in the folder.
        description: The content of `records.json`, or None.
        faults: One line for each fault: file, expected, found, remedy.
        notes: One line for each check that could not be made.
        compared: Files whose checksum, or size at level `size`, is that of checksums.json.
        counts: How often each id occurs in `counted`; None unless requested.
        counted: The parts whose ids were counted.
    """

    folder: Path
    level: str
    parts: list[DataPart]
    description: dict[str, Any] | None
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compared: set[Path] = field(default_factory=set)
    counts: IdCounts | None = None
    counted: list[DataPart] = field(default_factory=list)

    def raise_fault(self) -> None:
        """Raises `ValueError` with the first fault, if there is one."""
        if self.faults:
            more = f" (and {len(self.faults) - 1} faults more)" if len(self.faults) > 1 else ""
            command = f"; python3 -m preprocess.verify {self.folder} lists them" if more else ""
            raise ValueError(f"{self.faults[0]}{more}{command}")


class _Unit(NamedTuple):
    """A file to read; without `data` only its bytes are summed."""

    path: Path
    data: DataFile | None
    part: DataPart | None


def check_data(
    folder: StrPath,
    level: str,
    *,
    per_category: bool | None = None,
    parts: Sequence[str] = (),
    statistics: bool = False,
    rank: int = 0,
    size: int = 1,
) -> DataReport:
    """Checks the data files of a folder.

    Level `size` reads descriptions and sizes. Level `full` also reads every file once: its
    checksum, if there is one, and that labels are 0 and 1 and both occur, dense values are finite
    and ids lie within their tables.

    Args:
        folder: A folder with record files, with split files, or with train/ and test/ that hold
            split files.
        level: `size` or `full`.
        per_category: Whether split folders have one file for each table; None to detect it.
        parts: Subfolders that must exist and are the only ones checked; empty for all that exist.
        statistics: Whether to count ids, of the first kind of parts that is found.
        rank: The share of the files that is read; every rank checks all sizes.
        size: The number of shares.

    Returns:
        The report. Faults in the data are in it and raise nothing.

    Raises:
        ValueError: There is no data.
        OSError: The folder cannot be read.
    """
    assert level in LEVELS
    folder = Path(folder)
    found, description = find_parts(folder, per_category, parts)
    own = [] if parts else [folder]
    folders = list(dict.fromkeys([*own, *(part.folder for part in found)]))
    sums, without, faults = read_sums(folders)
    report = DataReport(folder, level, found, description, faults)
    holding = {data.file.path.parent for part in found for data in part.files}
    report.notes += [
        f"{path}: no {CHECKSUMS}, so there are no checksums to compare"
        for path in without
        if path in holding
    ]
    known = {data.file.path: (data, part) for part in found for data in part.files}
    wrong = _check_sizes(report, sums)
    if level == "full":
        paths = (known.keys() | sums.keys()) - wrong
        units = [_Unit(path, *known.get(path, (None, None))) for path in sorted(paths)]
        # The largest first, so that the shares are nearly alike; the order is the same everywhere.
        units.sort(key=lambda unit: -unit.path.stat().st_size)
        if statistics:
            report.counted = [part for part in found if _kind(part) == _kind(found[0])]
            widest = [p.vocab_sizes for p in report.counted if p.vocab_sizes]
            if len({len(sizes) for sizes in widest}) == 1:
                report.counts = IdCounts([max(sizes) for sizes in zip(*widest)])
        for unit in units[rank::size]:
            _check_unit(unit, report, sums)
        _check_labels(report)
    # Parts' faults first: they say more than a sum that differs.
    report.faults = [fault for part in found for fault in part.faults] + report.faults
    return report


def _kind(part: DataPart) -> bool:
    return part.kind == "records"


def _check_sizes(report: DataReport, sums: dict[Path, FileSum]) -> set[Path]:
    """Compares sizes with checksums.json and returns the files that need not be read."""
    wrong = set()
    for path, expected in sums.items():
        try:
            found = os.stat(path).st_size
        except OSError as error:
            found = -1
            problem = f"{path}: expected {expected.bytes} bytes ({CHECKSUMS}), found no such file"
            if not isinstance(error, FileNotFoundError):
                problem = str(error)
        else:
            problem = f"{path}: expected {expected.bytes} bytes ({CHECKSUMS}), found {found} bytes"
        if found == expected.bytes:
            report.compared.add(path)
            continue
        wrong.add(path)
        # A part may already have reported the same file in other words.
        if not any(str(path) in fault for part in report.parts for fault in part.faults):
            report.faults.append(f"{problem}; {_REWRITE_OR_REMOVE}")
    return wrong


def _check_unit(unit: _Unit, report: DataReport, sums: dict[Path, FileSum]) -> None:
    """Reads one file, and adds its faults and a checksum that differs to the report."""
    try:
        if unit.data is None or unit.part is None:
            found = sum_of(unit.path)
        else:
            counts = report.counts if unit.part in report.counted else None
            found = check_contents(unit.data, unit.part, counts)
    except (ValueError, OSError) as error:
        report.faults.append(str(error))
        return
    expected = sums.get(unit.path, found)
    if found.crc32 != expected.crc32:
        report.compared.discard(unit.path)
        report.faults.append(
            f"{unit.path}: expected CRC-32 {expected.crc32} ({CHECKSUMS}), found {found.crc32}: "
            f"its bytes are not those that were written; {_REWRITE_OR_REMOVE}"
        )


def _check_labels(report: DataReport) -> None:
    """Checks that both labels occur, and that the number of ones is that of records.json."""
    for part in report.parts:
        if part.positives is not None and part.positives in (0, part.samples):
            part.faults.append(
                f"{part.folder} ({part.name}): expected labels 0 and 1, found "
                f"{part.positives} ones among {part.samples} samples; check the source's labels"
            )
    expected = (report.description or {}).get("positives")
    for records in (True, False):
        parts = [part for part in report.parts if _kind(part) == records and part.role]
        samples = sum(part.samples for part in parts)
        if expected is None or any(part.positives is None for part in parts):
            continue
        if samples and samples == _samples(report.description or {}):
            found = sum(part.positives or 0 for part in parts)
            if found != expected:
                report.faults.append(
                    f"{report.folder}: expected {expected} labels 1 in all parts (records.json), "
                    f"found {found}; {REWRITE}"
                )


def _samples(description: dict[str, Any]) -> int:
    return sum(description.get(f"{name}_samples") or 0 for name in ("train", "validation", "test"))
