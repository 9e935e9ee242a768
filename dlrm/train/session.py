"""What a run does once everything is built: go on from a checkpoint, train or evaluate, save.

Knows how training and checkpoints fit together; how either works is their own business.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from dlrm.checkpoint.manifest import ModelShape, Position
from dlrm.checkpoint.resume import Resumed, resume
from dlrm.checkpoint.save import Checkpoints
from dlrm.checkpoint.state import Run, State
from dlrm.config import Config
from dlrm.data import Data
from dlrm.distributed.collective import Collective
from dlrm.distributed.watchdog import Watchdog
from dlrm.reporting import Reporter
from dlrm.train.loop import Trainer


class Session:
    """What a run does once everything is built.

    Args:
        config: the settings.
        collective: the ranks.
        data: opened.
        trainer: holds model and tables.
        reporter: not yet started.
        watchdog: entered.
    """

    def __init__(
        self,
        config: Config,
        collective: Collective,
        data: Data,
        trainer: Trainer,
        reporter: Reporter,
        watchdog: Watchdog,
    ) -> None:
        self._config = config
        self._collective = collective
        self._data = data
        self._trainer = trainer
        self._reporter = reporter
        self._watchdog = watchdog
        self._state = State(trainer.dense, trainer.embedding)
        self._run = Run(
            ModelShape(
                data.num_dense,
                data.vocab_sizes,
                config.model.embedding_dim,
                config.model.bottom_mlp,
                config.model.top_mlp,
            ),
            config.flat(),
            data.fingerprints,
        )

    def train(self, begin: float) -> bool:
        """Trains from the checkpoint to resume, or anew; whether to the end."""
        config, batches = self._config, self._data.train
        checkpoints = self._open_checkpoints()
        resumed = self._resume()
        position = resumed.position if resumed else Position(0, 0, 0)
        if checkpoints and resumed:
            checkpoints.loaded(resumed.path)
        epochs = [batches] * (config.run.epochs - position.epoch)
        if epochs:
            epochs[0] = batches.starting_at(position.next_sample // config.data.global_batch_size)
        self._collective.together(partial(self._reporter.start, position.step))
        start = time.perf_counter()
        outcome = self._trainer.train(
            epochs,
            self._data.test,
            self._reporter,
            first_step=position.step,
            save=partial(self._save, checkpoints) if checkpoints else lambda step: None,
            watchdog=self._watchdog,
        )
        end = time.perf_counter()
        if outcome.interrupted:
            self._reporter.interrupted(
                f"stopped by a signal after {outcome.step} steps; the same command goes on from "
                f"the checkpoint in {config.checkpoint.checkpoint_dir}"
            )
            return False
        self._reporter.finish(
            outcome.reason,
            training_seconds=end - start - outcome.evaluation_seconds,
            evaluation_seconds=outcome.evaluation_seconds,
            total_seconds=end - begin,
            steps=outcome.step - position.step,
        )
        return True

    def evaluate(self) -> bool:
        """Evaluates a checkpoint; whether to the end."""
        resumed = self._resume()
        if resumed is None:
            raise ValueError(
                f"--mode=test: no checkpoint in {self._config.checkpoint.checkpoint_dir}; "
                "set --resume=PATH"
            )
        step = resumed.position.step
        self._collective.together(partial(self._reporter.start, step))
        result = self._trainer.evaluate(self._data.test, step, self._watchdog)
        assert result is not None, "no signal is caught where one only evaluates"
        self._reporter.evaluation(result)
        self._reporter.close()
        return True

    def _open_checkpoints(self) -> Checkpoints | None:
        if self._config.checkpoint.checkpoint_dir is None:
            return None
        return Checkpoints(
            Path(self._config.checkpoint.checkpoint_dir),
            self._collective,
            self._run,
            keep=self._config.checkpoint.keep_checkpoints,
            moved=self._watchdog.report_progress,
        )

    def _resume(self) -> Resumed | None:
        config = self._config
        return resume(
            config.checkpoint.resume,
            Path(config.checkpoint.checkpoint_dir) if config.checkpoint.checkpoint_dir else None,
            self._run,
            self._state,
            self._collective,
            ignore_data_change=config.checkpoint.ignore_data_change or config.run.mode == "test",
            # Schedule and position count in steps.
            pinned=("global_batch_size",) if config.run.mode == "train" else (),
            say=self._reporter.say,
            moved=self._watchdog.report_progress,
        )

    def _save(self, checkpoints: Checkpoints, step: int) -> None:
        epoch, step_of_epoch = divmod(step, len(self._data.train))
        sample = step_of_epoch * self._config.data.global_batch_size
        start = time.perf_counter()
        if checkpoints.save(self._state, Position(step, epoch, sample)):
            self._reporter.checkpoint(step, time.perf_counter() - start)
