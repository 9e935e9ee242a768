"""The alerts of docs/metrics.md by Prometheus' own tool: valid, and firing when they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dlrm.reporting import prometheus_metrics
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "metrics.md"
# Two jobs for two hours. In a, rank 1 hangs after two minutes, and no checkpoint is written; in b,
# one is written after an hour.
CASES = """
rule_files: [alerts.yaml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'dlrm_rank_progress_total{instance="a", rank="0"}'
        values: '0+100x130'
      - series: 'dlrm_rank_progress_total{instance="a", rank="1"}'
        values: '0+100x2 200x128'
      - series: 'dlrm_rank_heartbeat_age_seconds{instance="a", rank="0"}'
        values: '1x130'
      - series: 'dlrm_rank_heartbeat_age_seconds{instance="a", rank="1"}'
        values: '1 1 1 31x127'
      - series: 'dlrm_start_timestamp_seconds{instance="a"}'
        values: '0x130'
      - series: 'dlrm_start_timestamp_seconds{instance="b"}'
        values: '0x130'
      - series: 'dlrm_checkpoint_last_success_timestamp_seconds{instance="b"}'
        values: '_x59 3600x71'
      - series: 'dlrm_samples_per_second{instance="a"}'
        values: '100x100 79x30'
      - series: 'dlrm_normalised_entropy{instance="a"}'
        values: '0.9x60 1.1x70'
      - series: 'dlrm_restarts_total{instance="a"}'
        values: '0x20 4x110'
"""
# The minute before which an alert is quiet, the minute at which it fires, and the labels it has.
FIRES = {
    "RankSilent": (2, 3, {"instance": "a", "rank": "1"}),
    "NoProgress": (7, 9, {"instance": "a", "rank": "1"}),
    "CheckpointOld": (120, 121, {"instance": "a"}),
    "Slow": (110, 112, {"instance": "a"}),
    "WorseThanNoModel": (60, 61, {"instance": "a"}),
    "Restarting": (20, 22, {"instance": "a"}),
}

pytestmark = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)"
)


def alerts() -> str:
    blocks = re.findall(r"^```yaml\n(groups:.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = blocks
    return str(block)


def promtool(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    text = alerts()
    (tmp_path / "alerts.yaml").write_text(text)
    promtool(tmp_path, "check", "rules", "alerts.yaml")
    rules = {rule["alert"]: rule for rule in yaml.safe_load(text)["groups"][0]["rules"]}
    assert rules.keys() == FIRES.keys()
    cases = yaml.safe_load(CASES)
    cases["tests"][0]["alert_rule_test"] = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": expected}
        for name, (quiet, firing, labels) in FIRES.items()
        for minute, expected in ((quiet, []), (firing, [{"exp_labels": labels}]))
    ]
    # What the lines for people say is not tested.
    for rule in rules.values():
        rule.pop("annotations", None)
    bare = {"groups": [{"name": "dlrm", "rules": list(rules.values())}]}
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(bare))
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
    promtool(tmp_path, "test", "rules", "cases.yaml")


def test_the_alerts_name_metrics_that_exist() -> None:
    source = Path(prometheus_metrics.__file__).read_text()
    for name in set(re.findall(r"dlrm_(\w+)", " ".join(re.findall("expr: (.*)", alerts())))):
        base = re.sub("^(evaluation|checkpoint)_|_total$", "", name)
        assert base in source, name
