"""`python3 -m serving verify`: every byte of an artifact, read and compared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Registers the command."""
    text = "Read every byte of an artifact and name the damaged files and offsets."
    parser = commands.add_parser("verify", help=text, description=text)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="folder of an artifact")
    parser.set_defaults(run=_run)


def _run(flags: argparse.Namespace) -> int:
    from dlrm.checkpoint.describe import first_damage
    from dlrm.formats.quantities import plural, size_text
    from serving.artifact import DESCRIPTION, read_artifact

    artifact = read_artifact(flags.artifact)
    print(f"{flags.artifact / DESCRIPTION}: ok")
    damaged = 0
    for name, digest in artifact.files.items():
        problem = first_damage(flags.artifact / name, digest)
        damaged += bool(problem)
        print(problem or f"{flags.artifact / name}: ok", flush=True)
    found = (
        f"{damaged} of {plural(len(artifact.files), 'file')} damaged" if damaged else "no damage"
    )
    print(f"{found}; {size_text(sum(digest.size for digest in artifact.files.values()))}")
    return int(damaged > 0)
