"""One run, in the order in which it happens.

    1. join the other ranks, and take this rank's GPU or cores, before any tensor exists;
    2. open the data; all ranks must have the same data and settings;
    3. choose where the tables lie, and count the memory before any of it is allocated;
    4. open the reports, so that failures from here on are recorded;
    5. build tables, model and trainer; their initial values depend on the settings alone;
    6. start the watchdog: from here on, no rank waits forever for another one;
    7. resume from a checkpoint, or begin anew;
    8. train, saving checkpoints, or evaluate once; then report.

Each part is implemented in a separate module; this one puts them together.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Callable

from dlrm.checkpoint.manifest import ModelShape, Position
from dlrm.checkpoint.resume import Resumed, resume
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import RunRecord, State
from dlrm.config import SETTINGS, Config
from dlrm.data import Data
from dlrm.distributed.collective import Collective
from dlrm.distributed.watchdog import Watchdog
from dlrm.reporting import Reporter
from dlrm.train.build import BuildModel, build_trainer, join, place_tables
from dlrm.train.failures import explained_exchange, recorded_failure
from dlrm.train.loop import Trainer
from dlrm.train.recorders import open_recorders
from dlrm.train.run_callback import RunCallback

OpenData = Callable[[Config, int, int], Data]


def run(config: Config, open_data: OpenData, build_model: BuildModel) -> bool:
    """Trains, or evaluates a checkpoint, as the settings say.

    Args:
        config: The settings.
        open_data: Opens the data, given the settings, a rank and the number of ranks.
        build_model: Builds the dense part.

    Returns:
        Whether the run came to its end; False if a signal stopped it, after a checkpoint.

    Raises:
        ValueError, OSError: Bad settings, data or memory. The message is one line for the user
            and, where the ranks can still talk, is raised on all of them.
    """
    begin = time.perf_counter()
    collective = join(config)  # 1
    with explained_exchange(collective):
        return run_together(config, collective, open_data, build_model, begin=begin)


def run_together(
    config: Config,
    collective: Collective,
    open_data: OpenData,
    build_model: BuildModel,
    *,
    begin: float,
) -> bool:
    """Does what follows once the ranks are joined: parts 2 to 8 of a run.

    Args:
        config: The settings.
        collective: The ranks.
        open_data: Opens the data.
        build_model: Builds the dense part.
        begin: When the run began, in seconds of `time.perf_counter`.

    Returns:
        Whether the run came to its end.

    Raises:
        ValueError, OSError: As for `run`.
    """
    trains = config.run.mode == "train"
    data = agree_on_data(config, collective, open_data)  # 2
    if trains:
        config = config.replace(eval_interval=config.evaluation.interval(len(data.train)))
    backend, placement = place_tables(config, collective, data)  # 3
    reporter = collective.together(lambda: open_reporter(config, collective, data))  # 4
    with recorded_failure(reporter), explained_exchange(collective):
        watchdog = Watchdog(
            collective,
            config.run.stall_timeout,
            exit_hook=reporter.fail,
            catch_signals=trains and config.checkpoint.checkpoint_dir is not None,
        )
        collective.together(lambda: add_recorders(config, collective, data, reporter, watchdog))
        for line in (*data.notes, placement):
            reporter.say(line)
        trainer = build_trainer(config, backend, collective, data, build_model)  # 5
        if trainer.instruments.note:
            reporter.say(trainer.instruments.note)
        with watchdog, explained_exchange(collective, watchdog):  # 6
            if not trains:
                return evaluate(config, collective, data, trainer, reporter, watchdog)
            return train(config, collective, data, trainer, reporter, watchdog, begin=begin)


def agree_on_data(config: Config, collective: Collective, open_data: OpenData) -> Data:
    """Opens the data, and checks that all ranks have the same data and settings.

    Raises:
        ValueError: On every rank, if the data of one is unusable or the ranks differ.
    """
    data = collective.together(lambda: open_data(config, collective.rank, collective.size))
    # MLPerf's clock starts before anything reads the data; `train` then looks at the content.
    content = {} if config.mlperf.mlperf_log else dict(data.fingerprints)
    shape = (data.num_dense, data.vocab_sizes, data.bag_layout)
    seen = (len(data.train), len(data.test), *shape, content)
    collective.agree("the training and test data", seen)
    collective.agree("the settings", {**config.flat(), "run_dir": None})
    return data


def open_reporter(config: Config, collective: Collective, data: Data) -> Reporter:
    """Opens the reports of this run.

    Raises:
        ValueError: `--run_dir` cannot be written.
    """
    steps = config.run.epochs * len(data.train)
    return Reporter(
        config.report.run_dir,
        config.flat(),
        rank=collective.rank,
        size=collective.size,
        global_batch=config.data.global_batch_size,
        total_steps=min(steps, config.run.early_stop) if config.run.early_stop > 0 else steps,
    )


def add_recorders(
    config: Config, collective: Collective, data: Data, reporter: Reporter, watchdog: Watchdog
) -> None:
    """Lets what else records this run, on rank 0, hear of its events.

    Raises:
        ValueError: A recorder cannot be opened.
    """
    if collective.rank == 0:
        recorders = open_recorders(config, data, health=watchdog.health, say=reporter.say)
        reporter.add_recorders(recorders)


def train(
    config: Config,
    collective: Collective,
    data: Data,
    trainer: Trainer,
    reporter: Reporter,
    watchdog: Watchdog,
    *,
    begin: float,
) -> bool:
    """Resumes or begins anew, and trains: parts 7 and 8 of a run.

    Args:
        config: The settings.
        collective: The ranks.
        data: The data, opened.
        trainer: Holds model and tables, with their initial values.
        reporter: The reports, open.
        watchdog: The watchdog, running.
        begin: When the run began, by `time.perf_counter`.

    Returns:
        Whether the training came to its end; False if a signal stopped it.
    """
    # The order of resuming is important:
    #   1. `--checkpoint_dir` is locked against other runs and cleared of unfinished checkpoints;
    #   2. `--resume` names one checkpoint, or the newest complete one of `--checkpoint_dir` is
    #      taken, where a damaged one is skipped for the one before it;
    #   3. model, global batch and data must be the checkpoint's; then weights and rows are loaded;
    #   4. with no checkpoint, weights and rows keep the values that the seed gave them;
    #   5. the data starts at the checkpoint's position, and the evaluation due there is made.
    record, state = describe(config, data), state_of(trainer)
    checkpoints = open_checkpoints(config, collective, record, watchdog)
    resumed = load(config, collective, record, state, reporter, watchdog)
    if checkpoints and resumed:
        checkpoints.loaded(resumed.path)
    position = resumed.position if resumed else Position(0, 0, 0)
    epochs = [data.train.in_epoch(epoch) for epoch in range(position.epoch, config.run.epochs)]
    if epochs:
        first_batch = position.next_sample // config.data.global_batch_size
        epochs[0] = epochs[0].starting_at(first_batch)

    def save(step: int) -> None:
        if checkpoints:
            epoch, batch = divmod(step, len(data.train))
            start = time.perf_counter()
            position = Position(step, epoch, batch * config.data.global_batch_size)
            if checkpoints.save(state, position):
                reporter.checkpoint(step, time.perf_counter() - start)

    collective.together(partial(reporter.start, position.step))
    collective.agree("the training and test data", dict(data.fingerprints))
    start = time.perf_counter()
    outcome = trainer.train(
        epochs,
        data.test,
        RunCallback(reporter, watchdog, save),
        first_step=position.step,
    )
    end = time.perf_counter()
    for line in trainer.instruments.report():
        reporter.say(line)
    if outcome.interrupted:
        reporter.interrupted(
            f"stopped by a signal after {outcome.step} steps; the same command goes on from the "
            f"checkpoint in {config.checkpoint.checkpoint_dir}"
        )
        return False
    reporter.finish(
        outcome.reason,
        training_seconds=end - start - outcome.evaluation_seconds,
        evaluation_seconds=outcome.evaluation_seconds,
        total_seconds=end - begin,
        steps=outcome.step - position.step,
    )
    return True


def evaluate(
    config: Config,
    collective: Collective,
    data: Data,
    trainer: Trainer,
    reporter: Reporter,
    watchdog: Watchdog,
) -> bool:
    """Evaluates a checkpoint; the arguments are those of `train`. Always comes to its end: True.

    Raises:
        ValueError: There is no checkpoint.
    """
    resumed = load(
        config, collective, describe(config, data), state_of(trainer), reporter, watchdog
    )
    if resumed is None:
        raise ValueError(
            f"--mode=test: no checkpoint in {config.checkpoint.checkpoint_dir}; set --resume=PATH"
        )
    step = resumed.position.step
    collective.together(partial(reporter.start, step))
    trainer.evaluate(data.test, step, RunCallback(reporter, watchdog))
    reporter.close()
    return True


def state_of(trainer: Trainer) -> State:
    """Gathers what training changes, which is what a checkpoint holds."""
    return State(trainer.step.dense, trainer.step.embedding)


def describe(config: Config, data: Data) -> RunRecord:
    """Describes the run as a checkpoint records it, and must fit it."""
    model = config.model
    interaction, bags = model.interaction_shape, data.bag_layout
    shape = ModelShape(
        data.num_dense,
        data.vocab_sizes,
        model.embedding_dim,
        model.bottom_mlp,
        model.top_mlp,
        interaction=interaction.kind,
        cross_layers=interaction.cross_layers,
        cross_rank=interaction.cross_rank,
        pooling=bags.pooling if bags else (),
        max_ids=bags.max_ids if bags else (),
        weighted=bags is not None and bags.weights,
        dynamic=config.embedding.keeps_occurring_ids,
    )
    affect = frozenset(setting.name for setting in SETTINGS if setting.affects_training)
    return RunRecord(shape, config.flat(), data.fingerprints, affect)


def open_checkpoints(
    config: Config, collective: Collective, record: RunRecord, watchdog: Watchdog
) -> Checkpoints | None:
    """Opens and locks `--checkpoint_dir`; None if the run writes no checkpoints."""
    if config.checkpoint.checkpoint_dir is None:
        return None
    return Checkpoints(
        Path(config.checkpoint.checkpoint_dir),
        collective,
        record,
        keep=config.checkpoint.keep_checkpoints,
        on_progress=watchdog.report_progress,
    )


def load(
    config: Config,
    collective: Collective,
    record: RunRecord,
    state: State,
    reporter: Reporter,
    watchdog: Watchdog,
) -> Resumed | None:
    """Loads the checkpoint that `--resume` asks for, if there is one."""
    options, trains = config.checkpoint, config.run.mode == "train"
    return resume(
        options.resume,
        Path(options.checkpoint_dir) if options.checkpoint_dir else None,
        record,
        state,
        collective,
        append_day=Path(options.append_day) if options.append_day else None,
        ignore_data_change=options.ignore_data_change or not trains,
        ignore_optimizer_change=options.ignore_optimizer_change or not trains,
        pinned=config.data.pinned if trains else (),
        on_message=reporter.say,
        on_progress=watchdog.report_progress,
    )
