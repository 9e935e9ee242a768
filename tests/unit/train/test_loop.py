"""How a trainer is used: what it reports to its callback, and when and why it ends."""

from __future__ import annotations

import numpy as np
import pytest

from dlrm.config import EvaluationConfig, RunConfig
from dlrm.distributed.collective import Collective
from dlrm.metrics import Evaluation
from dlrm.optim.schedule import Schedule
from dlrm.train.callback import Callback
from dlrm.train.evaluation import Evaluator
from dlrm.train.loop import Trainer, TrainingError
from tests.support.small_model import make_batches, reference_of, small_step

SCHEDULE = Schedule(base=0.5, warmup_steps=2, decay_start_step=100, decay_steps=100)


class Record(Callback):
    """Keeps what it is told, and asks to stop after a step."""

    def __init__(self, stop_after: int = -1) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.events: list[tuple[str, int]] = []
        self._stop_after = stop_after

    def stop_requested(self) -> bool:
        return len(self.losses) == self._stop_after

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        self.losses.append(loss)
        self.rates.append(learning_rate)

    def evaluation(self, result: Evaluation) -> None:
        self.events.append(("evaluation", result.step))

    def save(self, step: int) -> None:
        self.events.append(("save", step))


def make_trainer(checkpoint_interval: int = 100, **evaluation: float) -> Trainer:
    settings = EvaluationConfig(**{"eval_interval": 100, "auc_target": 1.0, **evaluation})  # type: ignore[arg-type]
    collective = Collective()
    evaluator = Evaluator(100, collective)
    return Trainer(
        small_step(), evaluator, collective, SCHEDULE, RunConfig(), settings,
        checkpoint_interval=checkpoint_interval,
    )  # fmt: skip


def test_five_steps_equal_the_reference() -> None:
    trainer, record = make_trainer(), Record()
    reference = reference_of(trainer.step)
    outcome = trainer.train([make_batches(5)], [], record)
    assert (outcome.reason, outcome.step, outcome.interrupted) == ("1 epoch", 5, False)
    assert record.rates == [0.0, 0.25, 0.5, 0.5, 0.5]
    expected = [
        reference.step(batch.dense, batch.ids, batch.labels, rate)
        for batch, rate in zip(make_batches(5), record.rates)
    ]
    np.testing.assert_allclose(record.losses, expected, rtol=1e-5)


def test_saves_come_before_the_evaluations_of_the_same_step() -> None:
    trainer, record = make_trainer(checkpoint_interval=2, eval_interval=2), Record()
    trainer.train([make_batches(3), make_batches(2)], make_batches(1), record)
    expected = [("save", 2), ("evaluation", 2), ("save", 4), ("evaluation", 4), ("save", 5)]
    assert record.events == expected


def test_an_evaluation_above_the_target_ends_the_training() -> None:
    outcome = make_trainer(eval_interval=2, auc_target=-1.0).train(
        [make_batches(5)], make_batches(2), Record()
    )
    assert (outcome.reason, outcome.step) == ("AUC > -1.0", 2)


@pytest.mark.parametrize(
    ("after", "first"), [(0.0, 1), (0.07, 7), (0.1, 10), (0.101, 11), (0.15, 15), (9.0, None)]
)
def test_no_evaluation_before_some_epochs(after: float, first: int | None) -> None:
    """With 100 steps an epoch; 0.07 * 100 is a little more than 7 in binary arithmetic."""
    trainer = make_trainer(eval_interval=1, test_after=after)
    trainer._steps_per_epoch = 100
    due = [step for step in range(30) if trainer._evaluation_is_due(step)]
    assert due == ([] if first is None else list(range(first, 30)))


def test_the_end_of_the_warm_up_is_reported_too() -> None:
    trainer, record = make_trainer(), Record()
    trainer._log_interval, trainer._warmup_steps = 4, 2
    steps: list[int] = []
    record.step = lambda step, *_: steps.append(step)  # type: ignore[method-assign]
    trainer.train([make_batches(9)], [], record, first_step=1)
    assert steps == [3, 4, 8]


def test_a_signal_ends_the_training_after_the_step_that_tells_all_ranks() -> None:
    record = Record(stop_after=1)
    outcome = make_trainer().train([make_batches(5)], [], record)
    assert (outcome.step, outcome.interrupted) == (2, True)
    assert record.events == [("save", 2)]


def test_a_resumed_training_makes_the_evaluation_that_was_due() -> None:
    record = Record()
    make_trainer(eval_interval=2).train([make_batches(1)], make_batches(1), record, first_step=2)
    assert record.events == [("evaluation", 2), ("save", 3)]


def test_an_id_outside_its_table_is_named() -> None:
    batches = make_batches(2)
    batches[1].ids[3, 0] = 7
    match = r"step 1 .*: ids outside .* sample 3 .* expected an id in \[0, 7\) for table 0, found 7"
    with pytest.raises(TrainingError, match=match):
        make_trainer().train([batches], [], Record())
    match = r"evaluation after step 0: ids outside .* sample 3 .* for table 0, found 7"
    with pytest.raises(TrainingError, match=match):
        make_trainer().evaluate(batches, 0, Record())
