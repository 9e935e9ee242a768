"""Nsight Systems around a run: every range is in its report, without a flag."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from pathlib import Path

import pytest

from dlrm.train.staged_step import PARTS
from tests.support.processes import run

NSYS = shutil.which("nsys")
# Debian's nsys does not find it by itself.
IMPORTER = Path("/usr/lib/nsight-systems/host-linux-x64/QdstrmImporter")
# As in the SOK benchmark's README, in front of its command.
OPTIONS = (
    *("--sample=none", "--backtrace=none", "--cudabacktrace=none", "--cpuctxsw=none"),
    "--trace-fork-before-exec=true",
)


@pytest.mark.slow
@pytest.mark.skipif(NSYS is None, reason="needs nsys: Debian's nsight-systems, section non-free")
def test_the_report_shows_every_range(tmp_path: Path) -> None:
    model = ("--global_batch_size=128", "--embedding_dim=4", "--bottom_mlp=4", "--top_mlp=4,1")
    ended = run(
        [
            *("nsys", "profile", *OPTIONS, "-o", tmp_path / "report"),
            *(sys.executable, "main.py", "--use_synthetic_dataset", "--early_stop=30", *model),
        ],
        time_limit=600,
    )
    assert ended.code == 0, ended.output
    assert "every second one of steps 10 to 20 is taken in parts" in ended.output
    report = tmp_path / "report.nsys-rep"
    if not report.exists():
        imported = run([IMPORTER, "-i", tmp_path / "report.qdstrm", "-o", report], time_limit=300)
        assert imported.code == 0, imported.output

    summary = run(["nsys", "stats", "-r", "nvtxsum", "--format=csv", report], time_limit=300)
    table = summary.output[summary.output.index("Time (%)") :]
    rows = csv.DictReader(io.StringIO(table))
    counts = {row["Range"]: int(row["Instances"]) for row in rows if row.get("Instances")}
    found = {name[len("dlrm:") :]: n for name, n in counts.items() if name.startswith("dlrm:")}
    twice = {"route", "lookup", "update"}  # before and after their exchange
    assert found == {
        **{part: 10 if part in twice else 5 for part in PARTS},
        "data": 30,
        "step": 25,
        "step in parts": 5,
        "checkpoint": 1,
    }
