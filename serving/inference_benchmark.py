"""Measures how fast a checkpoint answers: the trainer, a SavedModel of it and the scorer, in turn.

    1. the checkpoint is loaded as an evaluation does, by one process;
    2. it is exported to a temporary folder, whose SavedModel and artifact are opened;
    3. all three must give the same logits;
    4. each batch size is measured, then reported.

The flags, and what a latency is, are no concern of this module.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from dlrm.checkpoint.resume import resume
from dlrm.checkpoint.state import State
from dlrm.config import Config
from dlrm.data import Data
from dlrm.data.batch import FloatArray, Ids
from dlrm.distributed import devices
from dlrm.distributed.collective import Collective
from dlrm.distributed.connect import connect
from dlrm.formats.json_files import write_json_object
from dlrm.formats.quantities import plural
from dlrm.reporting.dllogger_lines import DlloggerLines
from dlrm.reporting.machine import hardware, versions
from dlrm.train.build import NO_LIMIT, BuildModel, build_tables, most_lanes, place_tables
from dlrm.train.optimizers import dense_optimizer
from dlrm.train.run import OpenData, describe
from dlrm.train.step import TrainingStep
from serving import scorer_library
from serving.artifact import SAVED_MODEL
from serving.benchmark_requests import Request, Samples, take
from serving.export import ExportOptions, export
from serving.latency import Latency, latency_table, measure_in_turn, plot_latency
from serving.saved_model import quiet
from serving.scorer import Scorer

JSON_FILE, PICTURE = "inference_benchmark.json", "inference_benchmark.png"
TENSORFLOW, SAVEDMODEL, SCORER = "TensorFlow", "SavedModel", "scorer"
CLOSE = 1e-5  # logits of two variants, where both compute in float32
_MOST_SAMPLES = 1 << 18  # that are held; requests beyond them take the same samples again
Score = Callable[[Request], FloatArray]  # -> logits [B]


def run_benchmark(config: Config, open_data: OpenData, build_model: BuildModel) -> None:
    """Measures, prints a table and writes the results into `--run_dir`.

    Args:
        config: The settings.
        open_data: Opens the data, as for a run.
        build_model: Builds the dense part.

    Raises:
        ValueError: There are several ranks or no checkpoint, or the variants do not agree.
        OSError: The scorer is not built, or a file cannot be read or written.
    """
    collective = connect(2 * config.run.stall_timeout or NO_LIMIT)
    if collective.size > 1:
        raise ValueError(
            f"--mode=inference_benchmark: expected one rank, found {collective.size}; start "
            "main.py without a launcher"
        )
    scorer_library.load()  # whose absence is better known before the work than after it
    # Each operation uses all cores, as where TensorFlow serves.
    devices.claim(collective.local_rank, core_per_operation=False)
    sizes, steps = config.run.inference_benchmark_batch_sizes, config.run.inference_benchmark_steps
    data = open_data(config, collective.rank, collective.size)
    samples = take(data, min(_MOST_SAMPLES, max(sizes) * steps))
    trained = Trained(config, collective, data, build_model)
    run_dir = Path(config.report.run_dir) if config.report.run_dir else None
    if run_dir:
        run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="inference_benchmark-", dir=run_dir) as folder:
        artifact = Path(folder) / "artifact"
        export(trained.checkpoint, artifact, ExportOptions(), lambda line: None)
        with Scorer.open(artifact) as scorer:
            others = {
                SAVEDMODEL: saved_model(artifact / SAVED_MODEL),
                SCORER: lambda request: scorer.score(request.dense, *request.columns),
            }
            differences = compare(trained, others, samples.requests(max(sizes), 1)[0])
            latencies = list(measure(trained, others, samples, sizes, steps))
    if config.tracking.log_path is not None:
        write_lines(config.tracking.log_path, config, latencies)
    say(latency_table(latencies))
    for name, difference in differences.items():
        say(f"largest difference of a logit from TensorFlow's: {name} {difference:.2g}")
    if not config.model.amp and max(differences.values()) > CLOSE:
        raise ValueError(
            f"expected logits within {CLOSE:g} of TensorFlow's, found the differences above; "
            "serve with the model.py that trained the checkpoint"
        )
    if run_dir:
        report(run_dir, config, trained, latencies, differences)


class Trained:
    """A checkpoint as the trainer holds it, for batches of any size.

    Args:
        config: The settings.
        collective: This process alone.
        data: The data, opened.
        build_model: Builds the dense part.

    Attributes:
        checkpoint: The checkpoint.
        step: Number of steps that training had done.

    Raises:
        ValueError: There is no checkpoint, it does not fit, or memory does not suffice.
    """

    def __init__(
        self, config: Config, collective: Collective, data: Data, build_model: BuildModel
    ) -> None:
        self._config, self._collective, self._data = config, collective, data
        backend, placement = place_tables(config, collective, data)
        say(placement)
        self._lanes = most_lanes(config)
        self._model = build_model(config)
        self._tables = build_tables(config, backend, collective, data, groups=self._lanes)
        self._steps: dict[int, TrainingStep] = {}
        options = config.checkpoint
        resumed = resume(
            options.resume,
            Path(options.checkpoint_dir) if options.checkpoint_dir else None,
            describe(config, data),
            State(self._step(1).dense, self._tables),
            collective,
            ignore_data_change=True,
            ignore_optimizer_change=True,
            on_message=say,
        )
        if resumed is None:
            raise ValueError(
                f"--mode={config.run.mode}: no checkpoint in {options.checkpoint_dir}; set "
                "--resume=PATH"
            )
        self.checkpoint, self.step = resumed.path, resumed.position.step
        self._tables.begin_step(self.step + 1)  # as an evaluation does: who has a row by then

    def score(self, dense: FloatArray, ids: Ids) -> FloatArray:
        """Computes logits as an evaluation does, [B, D], [B, T] or bags -> [B]."""
        logits, _ = self._step(len(dense)).score(dense, ids)
        return np.asarray(logits)

    def _step(self, batch_size: int) -> TrainingStep:
        """The step of a batch size; all of them share model and tables."""
        if batch_size not in self._steps:
            self._steps[batch_size] = TrainingStep(
                self._model,
                self._tables,
                dense_optimizer(self._config.optimizer),
                self._collective,
                num_dense=self._data.num_dense,
                local_batch=batch_size,
                lanes=math.gcd(self._lanes, batch_size),
                compiled=self._config.model.whole_graph_xla,
            )
            self._steps[batch_size].build()
        return self._steps[batch_size]


def saved_model(folder: Path) -> Score:
    """Loads a SavedModel, and returns what scores with it."""
    # The signature keeps the variables only as long as the whole is kept.
    with quiet():
        loaded = tf.saved_model.load(str(folder))

    def score(request: Request) -> FloatArray:
        inputs = {"dense": request.dense, **request.columns._asdict()}
        given = {name: tf.constant(array) for name, array in inputs.items() if array is not None}
        return np.asarray(loaded.signatures["serving_default"](**given)["logits"])

    return score


def compare(trained: Trained, others: Mapping[str, Score], request: Request) -> dict[str, float]:
    """The largest difference of each variant's logits from the trainer's."""
    expected = trained.score(request.dense, request.ids)
    return {name: float(np.abs(score(request) - expected).max()) for name, score in others.items()}


def measure(
    trained: Trained,
    others: Mapping[str, Score],
    samples: Samples,
    sizes: Sequence[int],
    steps: int,
) -> Iterator[Latency]:
    """Measures the variants at each batch size."""
    scores: dict[str, Score] = {
        TENSORFLOW: lambda request: trained.score(request.dense, request.ids),
        **others,
    }
    for size in sizes:
        say(f"measuring {steps} requests of {size:,}")
        requests = samples.requests(size, steps)

        def calls(score: Score, requests: Sequence[Request] = requests) -> Callable[[int], object]:
            return lambda number: score(requests[number % len(requests)])

        seconds = measure_in_turn({name: calls(score) for name, score in scores.items()}, steps)
        for name, values in seconds.items():
            yield Latency.of(name, size, values)


def report(
    run_dir: Path,
    config: Config,
    trained: Trained,
    latencies: Sequence[Latency],
    differences: Mapping[str, float],
) -> None:
    """Writes the JSON file and the picture.

    Raises:
        OSError: One of them cannot be written.
    """
    machine = hardware()
    content: dict[str, Any] = {
        "checkpoint": str(trained.checkpoint),
        "step": trained.step,
        "steps": config.run.inference_benchmark_steps,
        "bottom_mlp": config.model.bottom_mlp,
        "top_mlp": config.model.top_mlp,
        "embedding_dim": config.model.embedding_dim,
        "versions": versions(),
        "hardware": machine,
        "largest_logit_difference": dict(differences),
        "latencies": [latency.to_json() for latency in latencies],
    }
    write_json_object(run_dir / JSON_FILE, content, indent=1)
    cores = plural(len(os.sched_getaffinity(0)), "core")
    title = f"Inference on {cores} of {machine['cpu']}, step {trained.step:,}"
    plot_latency(run_dir / PICTURE, latencies, title)
    say(f"written: {run_dir / JSON_FILE}, {run_dir / PICTURE}")


def write_lines(path: str, config: Config, latencies: Sequence[Latency]) -> None:
    """Writes the trainer's latencies in dllogger's form, as those of NVIDIA's DLRMs.

    Raises:
        ValueError: The file cannot be written.
    """
    lines = DlloggerLines(path, steps_per_epoch=1, warn=say)
    lines.start(0, {}, config.flat())
    for latency in latencies:
        if latency.variant == TENSORFLOW:
            lines.record("inference", 0, dataclasses.asdict(latency))
    lines.end(success=True)


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)
