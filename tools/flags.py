"""Writes docs/flags.md, the table of all flags, from the fields of dlrm/config/.

python3 -m tools.flags

Imports the settings and nothing else of the product.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dlrm import cli
from dlrm.config import SECTIONS, SETTINGS, Setting
from dlrm.formats import atomic_files

PAGE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"

_HEAD = """\
# Flags of main.py

<!-- Written by `python3 -m tools.flags` from dlrm/config/. Change the fields, not this page. -->

`python3 main.py --help` prints the same. A flag is given as `--name=value`; a switch also as
`--name` or `--noname`. `--flagfile=FILE` reads flags from a file, one per line, such as those in
`presets/`; flags after it override it.

A run that resumes from a checkpoint may change any flag in *italics*. The others affect what is
trained: if one of them differs from the checkpoint's, the run says so, or, where the checkpoint
does not fit, refuses it (see [checkpoints_and_faults.md](checkpoints_and_faults.md#resuming)).
"""


def page() -> str:
    """Returns the page as Markdown: one table per section, in the order of the fields."""
    parts = [_HEAD]
    for section, kind in SECTIONS.items():
        summary = kind.__doc__.splitlines()[0]
        rows = [row(setting) for setting in SETTINGS if setting.section == section]
        head = ["| flag | default | |", "| --- | --- | --- |"]
        parts.append("\n".join([f"## {section.capitalize()}", "", summary, "", *head, *rows, ""]))
    return "\n".join(parts)


def row(setting: Setting) -> str:
    """Returns one flag's line of the table."""
    name = f"`--{setting.name}`" if setting.affects_training else f"*`--{setting.name}`*"
    text = setting.help
    if setting.choices:
        text += f" ({', '.join(f'`{choice}`' for choice in setting.choices)})"
    if setting.aliases:
        text += f"; also {', '.join(f'`--{alias}`' for alias in setting.aliases)}"
    return f"| {name} | {default(setting)} | {text} |"


def default(setting: Setting) -> str:
    """Returns a default as one writes it on the command line; empty if the flag is unset."""
    if setting.default in (None, ()):
        return ""
    if isinstance(setting.default, bool):
        return "`true`" if setting.default else "`false`"
    if isinstance(setting.default, tuple):
        return f"`{','.join(map(str, setting.default))}`"
    return f"`{setting.default}`"


def main() -> int:
    """Writes the page; returns the exit code."""
    atomic_files.write_text(PAGE, page())
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
