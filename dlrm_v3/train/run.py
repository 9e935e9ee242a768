"""One run, in the order in which it happens; the same as the DLRM's, on a stream.

1. join the other ranks, and take this rank's GPU or cores, before any tensor exists;
2. open the data and complete the settings; all ranks must have the same;
3. choose where the tables lie, and count the memory before any of it is allocated;
4. open the reports, so that failures from here on are recorded;
5. build tables, model and trainer; their initial values depend on the settings alone;
6. start the watchdog: from here on, no rank waits forever for another one;
7. resume from a checkpoint, or begin anew;
8. train, saving checkpoints, or evaluate the timestamps of inference; then report.

Each part is implemented in a separate module; this one puts them together.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from dlrm.checkpoint.manifest import ModelShape
from dlrm.checkpoint.resume import Resumed, resume
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.distributed import devices
from dlrm.distributed.connect import connect
from dlrm.distributed.watchdog import Watchdog
from dlrm.train.build import NO_LIMIT
from dlrm.train.failures import explained_exchange, recorded_failure
from dlrm.train.recorders import open_trackers
from dlrm.train.run_callback import RunCallback
from dlrm_v3.train.build import (
    StreamParts,
    build_trainer,
    fused_table,
    open_parts,
    place_tables,
)
from dlrm_v3.train.loop import StreamTrainer
from dlrm_v3.train.reporter import StreamReporter
from dlrm_v3.train.settings import NOT_OF_THE_MODEL, tracking_of

ARCHITECTURE = "HSTU"


def run(flags: argparse.Namespace) -> bool:
    """Trains, or evaluates a checkpoint, as the flags say.

    Returns:
        Whether the run came to its end; False if a signal stopped it, after a checkpoint.

    Raises:
        ValueError, OSError: Bad settings, data or memory. The message is one line for the user
            and, where the ranks can still talk, is raised on all of them.
    """
    begin = time.perf_counter()
    collective = connect(2 * flags.stall_timeout or NO_LIMIT)  # 1
    # The products of matrices and the fused ops share the cores among their threads.
    devices.claim(collective.local_rank, core_per_operation=False)
    parts = open_parts(flags, collective)  # 2
    options = parts.settings.options
    backend, placement = place_tables(parts)  # 3
    reporter = collective.together(lambda: open_reporter(parts))  # 4
    with recorded_failure(reporter), explained_exchange(collective):
        watchdog = Watchdog(
            collective,
            options.stall_timeout,
            exit_hook=reporter.fail,
            catch_signals=parts.settings.trains and options.checkpoint_dir is not None,
        )
        collective.together(lambda: add_trackers(parts, reporter, watchdog))
        reporter.say(placement)
        trainer = build_trainer(parts, backend)  # 5
        reporter.say(described_parts(parts))
        with watchdog, explained_exchange(collective, watchdog):  # 6
            if not parts.settings.trains:
                return evaluate(parts, trainer, reporter, watchdog)
            return train(parts, trainer, reporter, watchdog, begin=begin)


def described_parts(parts: StreamParts) -> str:
    """A line for the user: the model, the data and how much there is to do."""
    settings, plan = parts.settings, parts.plan
    model, options = settings.model, settings.options
    ops = "fused ops" if options.fused else "XLA" if options.xla else "plain TensorFlow"
    return (
        f"HSTU: {model.layers} layers of width {model.width}, {settings.compute_dtype}, {ops}; "
        f"timestamps {plan.first} to {plan.last} in {plan.steps:,} steps of "
        f"{settings.learning.global_batch_size:,} requests"
    )


def open_reporter(parts: StreamParts) -> StreamReporter:
    """Opens the reports of this run.

    Raises:
        ValueError: `--run_dir` cannot be written.
    """
    settings, stop = parts.settings, parts.settings.options.early_stop
    return StreamReporter(
        settings.options.run_dir,
        settings.flat(),
        rank=parts.collective.rank,
        size=parts.collective.size,
        global_batch=settings.learning.global_batch_size,
        total_steps=min(parts.plan.steps, stop) if stop > 0 else parts.plan.steps,
    )


def add_trackers(parts: StreamParts, reporter: StreamReporter, watchdog: Watchdog) -> None:
    """Lets what shows the run to other programs, on rank 0, hear of its events.

    Raises:
        ValueError: One of them cannot be opened.
    """
    if parts.collective.rank == 0:
        options = parts.settings.options
        trackers = open_trackers(
            tracking_of(vars(options)),
            run_dir=options.run_dir,
            checkpoint_dir=options.checkpoint_dir if parts.settings.trains else None,
            steps_per_epoch=parts.plan.steps,
            health=watchdog.health,
            say=reporter.say,
        )
        reporter.add_recorders(trackers)


def train(
    parts: StreamParts,
    trainer: StreamTrainer,
    reporter: StreamReporter,
    watchdog: Watchdog,
    *,
    begin: float,
) -> bool:
    """Resumes or begins anew, and trains: parts 7 and 8 of a run.

    Args:
        parts: What the run consists of.
        trainer: Holds model and tables, with their initial values.
        reporter: The reports, open.
        watchdog: The watchdog, running.
        begin: When the run began, by `time.perf_counter`.

    Returns:
        Whether the training came to its end; False if a signal stopped it.
    """
    options, plan = parts.settings.options, parts.plan
    state = State(trainer.step.dense, trainer.step.embedding)
    checkpoints = open_checkpoints(parts, watchdog)
    resumed = load(parts, state, reporter, watchdog)
    if checkpoints and resumed:
        checkpoints.loaded(resumed.path)
    first_step = resumed.position.step if resumed else 0
    if first_step > plan.steps:
        raise ValueError(
            f"--last_timestamp={plan.last}: expected one that is not behind the checkpoint, found "
            f"{first_step} steps done of {plan.steps}; raise it, or set --resume=none and another "
            "--checkpoint_dir"
        )

    def save(step: int) -> None:
        if checkpoints:
            start = time.perf_counter()
            if checkpoints.save(state, plan.position(step)):
                reporter.checkpoint(step, time.perf_counter() - start)

    parts.collective.together(partial(reporter.start, first_step))
    start = time.perf_counter()
    outcome = trainer.train(RunCallback(reporter, watchdog, save), first_step=first_step)
    end = time.perf_counter()
    if outcome.interrupted:
        reporter.interrupted(
            f"stopped by a signal after {outcome.step} steps; the same command goes on from the "
            f"checkpoint in {options.checkpoint_dir}"
        )
        return False
    reporter.finish(
        outcome.reason,
        training_seconds=end - start - outcome.evaluation_seconds,
        evaluation_seconds=outcome.evaluation_seconds,
        total_seconds=end - begin,
        steps=outcome.step - first_step,
    )
    return True


def evaluate(
    parts: StreamParts, trainer: StreamTrainer, reporter: StreamReporter, watchdog: Watchdog
) -> bool:
    """Evaluates a checkpoint on the timestamps of inference. Always comes to its end: True.

    Raises:
        ValueError: There is no checkpoint.
    """
    state = State(trainer.step.dense, trainer.step.embedding)
    resumed = load(parts, state, reporter, watchdog)
    if resumed is None:
        raise ValueError(
            f"--mode=test: no checkpoint in {parts.settings.options.checkpoint_dir}; set "
            "--resume=PATH"
        )
    trainer.lifetime.forget()  # of the training's evaluations
    step, stream = resumed.position.step, parts.stream.config
    parts.collective.together(partial(reporter.start, step))
    for timestamp in range(stream.train_timestamps, stream.timestamps):
        shares = parts.plan.shares(timestamp, "inference")
        trainer.evaluate(shares, timestamp, step, RunCallback(reporter, watchdog))
    reporter.say(reporter.table())
    reporter.close()
    return True


def describe_run(parts: StreamParts) -> RunRecord:
    """Describes the run as a checkpoint records it, and must fit it."""
    table, settings = fused_table(parts), parts.settings.flat()
    shape = ModelShape(None, table.vocab_sizes, table.width, None, None, ARCHITECTURE)
    affect = frozenset(settings) - NOT_OF_THE_MODEL
    return RunRecord(shape, settings, {"stream": parts.stream.fingerprint}, affect)


def open_checkpoints(parts: StreamParts, watchdog: Watchdog) -> Checkpoints | None:
    """Opens and locks `--checkpoint_dir`; None if the run writes no checkpoints."""
    options = parts.settings.options
    if options.checkpoint_dir is None:
        return None
    return Checkpoints(
        Path(options.checkpoint_dir),
        parts.collective,
        describe_run(parts),
        keep=options.keep_checkpoints,
        on_progress=watchdog.report_progress,
    )


def load(
    parts: StreamParts, state: State, reporter: StreamReporter, watchdog: Watchdog
) -> Resumed | None:
    """Loads the checkpoint that `--resume` asks for, if there is one."""
    settings, options = parts.settings, parts.settings.options
    return resume(
        options.resume,
        Path(options.checkpoint_dir) if options.checkpoint_dir else None,
        describe_run(parts),
        state,
        parts.collective,
        ignore_data_change=options.ignore_data_change or not settings.trains,
        # Positions count in steps; the others shape the weights or what they are multiplied with.
        pinned=settings.pinned(),
        on_message=reporter.say,
        on_progress=watchdog.report_progress,
    )
