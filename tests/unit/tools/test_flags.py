"""docs/flags.md is what the fields of the settings say."""

from __future__ import annotations

from dlrm.config import SETTINGS
from tools.flags import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python3 -m tools.flags"


def test_every_flag_has_one_row() -> None:
    rows = [line for line in page().splitlines() if line.startswith(("| `--", "| *`--"))]
    assert len(rows) == len(SETTINGS)
    assert "| `--lr` | `24.0` | learning rate after the warm-up |" in rows
