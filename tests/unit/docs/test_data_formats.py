"""docs/data_formats.md names every key of the descriptions that the product writes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from dlrm.checkpoint.manifest import Manifest, ModelShape, Position
from dlrm.formats.metadata import Metadata
from preprocess.dictionary_files import SCHEMA
from preprocess.log_statistics import LogStatistics, describe
from preprocess.options import Options
from preprocess.rules import rules_by_name

PAGE = Path(__file__).resolve().parents[3] / "docs" / "data_formats.md"


def test_every_key_is_on_the_page() -> None:
    described = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8")))
    samples = {"train": 1, "test": 1}
    keys = set(describe(["log"], Options(rules_by_name("dlrm")), LogStatistics([2]), samples))
    keys |= SCHEMA.keys()
    for kind in (Metadata, Manifest, ModelShape, Position):
        keys |= {field.name for field in dataclasses.fields(kind)}
    assert not keys - described
