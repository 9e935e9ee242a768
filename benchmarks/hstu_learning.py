"""What HSTU learns from a stream, over time, compared with three baselines and the best possible.

    python3 -m benchmarks.hstu_learning DATA [--output FOLDER] [flags of dlrm_v3.train ...]

DATA is a folder of `python3 -m dlrm_v3.generate`. HSTU is trained by `dlrm_v3.train` with the
settings of DATA's preset: every timestamp is predicted, all its requests, before it is trained on
once. The baselines then do the same on the same requests: the global rate, the popularity of items,
and the DLRM of this project on item, category, last item and counts of the history. A second DLRM
is helped: it has a table of users, and is told how many events, and liked ones, the history has in
the candidate's category, the product of history and candidate that HSTU has to find. The best
possible are the probabilities that the labels were drawn from. Beside them stand what the generator
can say of predictors that know only the items' ratings, or only the users' tastes.

The figures of a predictor are the means, over the last quarter of the predicted timestamps, of its
normalised entropies and AUCs, and the normalised entropy over all candidates of this quarter. The
share of the gap that it closes is its distance from popularity's figure, divided by the distance of
the best possible from popularity's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dlrm import cli

with cli.project_environment():
    import numpy as np

    from benchmarks.hstu_baselines import (
        Candidates,
        DlrmBaseline,
        GlobalRate,
        Popularity,
        Predictor,
        read_candidates,
    )
    from benchmarks.hstu_plot import plot_learning
    from benchmarks.ranks import ROOT
    from dlrm.metrics import binary_entropy
    from dlrm_v3.data.layout import BEST
    from dlrm_v3.data.stream import RequestStream, open_stream
    from dlrm_v3.quality import ranking_quality

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

HSTU, RATE, POPULARITY, BEST_POSSIBLE = "HSTU", "global rate", "item popularity", "best possible"
DLRM, HELPED_DLRM = "DLRM", "DLRM, helped"
EVENTS = "events.jsonl"
SAME = 1e-3  # the training counts scores in bins, and bounds their logits

Figures = list[tuple[float, float]]  # NE and AUC of each predicted timestamp


class Run(NamedTuple):
    """What a training recorded.

    Attributes:
        settings: Its settings.
        evaluations: The record of each timestamp's evaluation.
    """

    settings: dict[str, Any]
    evaluations: dict[int, dict[str, Any]]


def train(data: Path, run_dir: Path, flags: Sequence[str]) -> None:
    """Trains HSTU; its figures are in `run_dir` then.

    Raises:
        ValueError: The training failed; it has said why.
    """
    command = [sys.executable, "-m", "dlrm_v3.train", f"--data_dir={data.resolve()}"]
    command += [f"--run_dir={run_dir.resolve()}", "--eval_batches=0", *flags]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise ValueError(f"{' '.join(command)} ended with code {code}; its last line says why")


def read_run(run_dir: Path) -> Run:
    """Reads what a training recorded, the last one if there were several.

    Raises:
        OSError: There is no such record.
        ValueError: It has no evaluation.
    """
    path = run_dir / EVENTS
    settings: dict[str, Any] = {}
    evaluations: dict[int, dict[str, Any]] = {}
    for event in map(json.loads, path.read_text().splitlines()):
        if event["event"] == "start":
            settings = event["settings"]
        elif event["event"] == "evaluation":
            evaluations[event["timestamp"]] = event
    if not evaluations:
        raise ValueError(f"{path}: expected evaluations, found none; train with this run_dir")
    return Run(settings, evaluations)


def figures_of(predictions: Any, candidates: Candidates) -> tuple[float, float]:
    """NE and AUC of predictions."""
    found = ranking_quality(predictions, candidates.labels, candidates.counts)
    return found.normalised_entropy, found.auc


def compare(stream: RequestStream, run: Run) -> dict[str, Figures]:
    """Lets the baselines predict and learn as HSTU did; returns the curves of all.

    Raises:
        ValueError: HSTU was evaluated on other requests.
    """
    predictors: dict[str, Predictor] = {
        RATE: GlobalRate(),
        POPULARITY: Popularity(stream.config.items),
        DLRM: DlrmBaseline(stream.config, helped=False),
        HELPED_DLRM: DlrmBaseline(stream.config, helped=True),
    }
    curves: dict[str, Figures] = {name: [] for name in (HSTU, *predictors, BEST_POSSIBLE)}
    last = max(run.evaluations)
    for timestamp in range(last + 1):
        part = "train" if timestamp < stream.config.train_timestamps else "eval"
        candidates = read_candidates(stream, timestamp, part, run.settings["max_history"])
        if timestamp in run.evaluations:
            event = run.evaluations[timestamp]
            for name, predictor in predictors.items():
                curves[name].append(figures_of(predictor.predict(candidates), candidates))
            best = figures_of(candidates.probabilities, candidates)
            curves[HSTU].append((event["normalised_entropy"], event["auc"]))
            curves[BEST_POSSIBLE].append(best)
            found = event["candidates"], event["best_normalised_entropy"]
            if found[0] != len(candidates.labels) or abs(found[1] - best[0]) > SAME:
                raise ValueError(
                    f"timestamp {timestamp}: expected the training's evaluation of all "
                    f"{len(candidates.labels)} candidates, whose best possible NE is "
                    f"{best[0]:.4f}, found {found[0]} and {found[1]:.4f}; train on this data, "
                    "with --eval_batches=0"
                )
        for predictor in predictors.values() if timestamp < last else ():
            predictor.learn(candidates)
        print(f"baselines: timestamp {timestamp} of {last}", flush=True)
    return curves


def generated(data: Path, timestamps: Sequence[int]) -> list[dict[str, Any]]:
    """What the generator wrote of the candidates of each timestamp."""
    best = json.loads((data / BEST).read_text())
    return [best["train"]["timestamps"].get(str(t), best["eval"]) for t in timestamps]


def alone(written: Sequence[dict[str, Any]]) -> dict[str, Figures]:
    """The curves of predictors that know only items, or only users."""
    names = {"items known, no user": "item_alone", "user known, no items": "user_alone"}
    return {
        title: [(value[key]["normalised_entropy"], value[key]["auc"]) for value in written]
        for title, key in names.items()
    }


def entropy_of_all(entropies: Any, written: Sequence[dict[str, Any]]) -> float:
    """The normalised entropy over all candidates of some timestamps, from those of each.

    Args:
        entropies: Normalised entropies, [timestamps].
        written: What the generator wrote of each timestamp.
    """
    counts = np.array([value["candidates"] for value in written], np.float64)
    rates = np.array([value["rate"] for value in written])
    losses = entropies * [binary_entropy(rate) for rate in rates]
    shares = counts / counts.sum()
    return float(shares @ losses / binary_entropy(float(shares @ rates)))


def table(
    curves: dict[str, Figures], written: Sequence[dict[str, Any]], quarter: int
) -> Iterator[str]:
    """Lines of a Markdown table: figures of the last timestamps, and shares of the gap."""
    figures = {}
    for name, values in curves.items():
        last = np.array(values[-quarter:])
        of_all = entropy_of_all(last[:, 0], written[-quarter:])
        figures[name] = np.array([*last.mean(axis=0), of_all])
    popularity, gap = figures[POPULARITY], figures[BEST_POSSIBLE] - figures[POPULARITY]
    yield "| predictor | NE | AUC | NE of all | share of the gap closed, NE | AUC | NE of all |"
    yield "| :--- |" + " ---: |" * 6
    for name, found in figures.items():
        cells = [f"{value:.4f}" for value in found]
        cells += [f"{share:.3f}" for share in (found - popularity) / gap]
        yield f"| {name} | " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, compares, prints tables and writes a picture; returns the exit code."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", type=Path, help="folder that dlrm_v3.generate wrote")
    add("--output", type=Path, default=Path("hstu_learning"),
        help="folder for the run and learning.png (default: %(default)s)")  # fmt: skip
    add("--reuse", action="store_true", help="take the training that --output holds")
    options, flags = parser.parse_known_args(arguments)
    begin = time.perf_counter()
    stream, run_dir = open_stream(options.data), options.output
    if not options.reuse:
        train(options.data, run_dir, flags)
    trained = time.perf_counter()
    run = read_run(run_dir)
    curves = compare(stream, run)
    timestamps = sorted(run.evaluations)
    quarter = -(-len(timestamps) // 4)
    print("| timestamp | " + " | ".join(curves) + " |")
    print("| ---: " * (len(curves) + 1) + "|")
    for place, timestamp in enumerate(timestamps):
        cells = (f"{ne:.4f}, {auc:.4f}" for ne, auc in (curve[place] for curve in curves.values()))
        print(f"| {timestamp} | " + " | ".join(cells) + " |")
    print(f"\nmeans over the last {quarter} timestamps, {timestamps[-quarter]} to {timestamps[-1]}")
    written = generated(options.data, timestamps)
    print(*table({**curves, **alone(written)}, written, quarter), sep="\n")
    picture = run_dir / "learning.png"
    plot_learning(str(picture), timestamps, curves, f"{stream.preset}: NE and AUC over timestamps")
    end = time.perf_counter()
    print(f"HSTU {trained - begin:.0f} s, baselines {end - trained:.0f} s; picture: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_code(main))
