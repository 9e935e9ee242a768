"""What each quantisation of a checkpoint costs: AUC, log loss and normalised entropy.

    python3 -m benchmarks.quantisation CHECKPOINT TRAIN TEST [--methods=minmax,...] [--samples=N]

Exports the checkpoint with every type of tables and MLPs and evaluates each artifact on the split
folder TEST; int8 MLPs are calibrated on the split folder TRAIN, by each of the methods in turn. The
figures do not depend on the machine: another instruction set changes the last bits alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from dlrm import cli

with cli.project_environment():
    from dlrm.checkpoint.describe import newest
    from dlrm.metrics import Quality
    from serving.calibration import calibrate
    from serving.evaluate import evaluate
    from serving.export import ExportOptions, export
    from serving.ranges import METHODS
    from serving.row_encoding import FLOAT32, INT8, TABLE_TYPES, row_bytes


def _line(words: tuple[str, ...]) -> str:
    return f"{words[0]:<10} {words[1]:<16} " + " ".join(f"{word:>12}" for word in words[2:])


def main() -> int:
    """Prints the table; returns the exit code."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a --checkpoint_dir")
    parser.add_argument("train", type=Path, help="split folder of the training samples")
    parser.add_argument("test", type=Path, help="split folder of the test samples")
    parser.add_argument(
        "--methods", default="minmax", help="of calibration, with commas (default: minmax)"
    )
    parser.add_argument("--samples", type=int, default=1 << 17, help="for calibration")
    flags = parser.parse_args()
    methods = flags.methods.split(",")
    if unknown := set(methods) - METHODS.keys():
        raise ValueError(f"--methods: expected some of {', '.join(METHODS)}, found {unknown}")
    checkpoint = newest(flags.checkpoint)
    print(_line(("tables", "MLPs", "bytes a row", "AUC", "change", "log loss", "NE")))
    reference: Quality | None = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for method in (None, *methods):
            if method:
                path = folder / method
                calibrate(checkpoint, flags.train, flags.samples, method).write(path)
            for tables in TABLE_TYPES:
                options = ExportOptions(
                    tables=tables,
                    dense=INT8 if method else FLOAT32,
                    calibration=path if method else None,
                    saved_model=False,
                )
                out = folder / f"{tables}-{method}"
                artifact = export(checkpoint, out, options, lambda _: None)
                found = evaluate(out, flags.test).artifact
                reference = reference or found
                words = (
                    tables,
                    f"{INT8}, {method}" if method else FLOAT32,
                    str(row_bytes(tables, artifact.model.embedding_dim)),
                    f"{found.auc:.6f}",
                    f"{found.auc / reference.auc - 1:+.4%}",
                    f"{found.log_loss:.6f}",
                    f"{found.normalised_entropy:.6f}",
                )
                print(_line(words), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
