"""`python3 -m tools.examples NAME FOLDER`: from a log to served scores, and how good they are."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from dlrm import cli
from preprocess.ingest import ENGINES
from serving import scorer_library
from tools.examples.logs import EXAMPLES, ExampleLog

_ROOT = Path(__file__).resolve().parents[2]
_TEST_FRACTION = 0.1  # of schemas that `preprocess.guess` writes
_TRAINING = (
    *("--global_batch_size=512", "--embedding_dim=8", "--bottom_mlp=32,8", "--top_mlp=64,1"),
    *("--optimizer=adagrad", "--dense_optimizer=adagrad", "--lr=0.03", "--lr_schedule=cosine"),
    *("--warmup_steps=50", "--decay_start_step=100", "--auc_target=1", "--eval_in_last"),
)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python3 -m tools.examples", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "name",
        choices=("counts", "people", "movies"),
        help="counts as in Criteo's logs, texts as in UCI Adult, ratings as in MovieLens",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made; must not exist")
    parser.add_argument(
        "--rows", type=int, default=200_000, help="rows of the log (default: 200000)"
    )
    parser.add_argument("--epochs", type=int, default=4, help="epochs of training (default: 4)")
    parser.add_argument(
        "--engine", choices=ENGINES, default="polars", help="of preprocess (default: polars)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the log (default: 1)")
    return parser


def _run(*words: str) -> None:
    print("$ python3", *words, flush=True)
    ended = subprocess.run([sys.executable, *words], cwd=_ROOT, check=False)
    if ended.returncode:
        raise ValueError(f"python3 {words[0]} {words[1]}: ended with exit code {ended.returncode}")


def _work(flags: argparse.Namespace) -> int:
    if flags.folder.exists():
        raise ValueError(f"{flags.folder}: already exists; remove it, or choose another FOLDER")
    if flags.rows < 10_000:
        raise ValueError(f"--rows: expected 10000 or more, found {flags.rows}")
    from dlrm.metrics import exact_auc

    scorer_library.load()  # whose absence is better known before the work than after it

    log = EXAMPLES[flags.name](flags.rows, flags.seed)
    folder = flags.folder.resolve()
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text("\n".join(log.lines) + "\n", encoding="utf-8")
    _write_schema(folder, log)
    test = slice(len(log.labels) - round(_TEST_FRACTION * len(log.labels)), None)
    best = exact_auc(log.logits[test], log.labels[test])
    data, run = folder / "data", folder / "run"
    schema = f"--schema={folder / 'schema.yaml'}"
    engine = f"--engine={flags.engine}"
    words = ["--rules=generic", schema, "--columns", f"--output={data}", engine]
    _run("-m", "preprocess", str(folder / "log.csv"), *words)
    steps = flags.epochs * (len(log.labels[: test.start]) // 512)
    _run(
        "main.py",
        f"--data_dir={data}",
        f"--run_dir={run}",
        f"--checkpoint_dir={folder / 'checkpoints'}",
        f"--epochs={flags.epochs}",
        f"--decay_steps={max(1, steps - 100)}",
        f"--eval_interval={steps}",
        *_TRAINING,
    )
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    auc = [event["auc"] for event in events if event["event"] == "evaluation"][-1]
    served = _served_auc(folder, [log.lines[0], *log.lines[1:][test]], engine)
    print(
        f"{flags.name}: AUC {auc:.4f}; best possible {best:.4f}, by the true logits of these rows\n"
        f"{flags.name}: AUC {served:.4f} of the scores that are served for their lines"
    )
    return 0


def _write_schema(folder: Path, log: ExampleLog) -> None:
    """Has a schema guessed from the log, and removes what a person would remove."""
    guessed, schema = folder / "guessed.yaml", folder / "schema.yaml"
    _run("-m", "preprocess.guess", str(folder / "log.csv"), f"--output={guessed}")
    text = guessed.read_text(encoding="utf-8")
    schema.write_text(log.edited(text), encoding="utf-8")
    for name in log.unwanted:
        print(f"{schema.name}: as {guessed.name}, without the feature {name!r}")
    if not log.unwanted:
        print(f"{schema.name}: {guessed.name} as it is")


def _served_auc(folder: Path, lines: list[str], engine: str) -> float:
    """Exports the model, and scores lines of the log as if they had come after its training."""
    from serving.evaluate import evaluate

    artifact, data = folder / "artifact", folder / "new"
    (folder / "new.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    schema = (folder / "schema.yaml").read_text(encoding="utf-8")
    undivided = schema.replace(f"test: {_TEST_FRACTION}", "test: 0")
    (folder / "new.yaml").write_text(undivided, encoding="utf-8")
    _run("-m", "serving", "export", str(folder / "checkpoints"), str(artifact), "--no_saved_model")
    words = ["--rules=generic", f"--schema={folder / 'new.yaml'}", "--columns", f"--output={data}"]
    known = f"--dictionary={folder / 'data'}"
    _run("-m", "preprocess", str(folder / "new.csv"), *words, known, engine)
    _run("-m", "serving", "evaluate", str(artifact), str(data / "train"))
    return evaluate(artifact, data / "train").artifact.auc


def main(arguments: list[str] | None = None) -> int:
    """Runs an example; returns the exit code."""
    return cli.exit_code(lambda: _work(_parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
