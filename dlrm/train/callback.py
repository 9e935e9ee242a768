"""The interface between the training loop and the program that runs it.

Imports no TensorFlow, so that a program can define its callbacks before it loads.
"""

from __future__ import annotations

from dlrm.metrics import Evaluation


class Callback:
    """Receives the loop's progress, and does nothing with it; override what is of interest.

    Example:
        class Losses(Callback):
            def step(self, step, loss, learning_rate):
                print(step, loss)
    """

    def progress(self, position: str) -> None:
        """The main thread has reached `position`, and may now wait for other ranks."""

    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return False

    def exchanged(self, sent_bytes: int) -> None:
        """This rank sent so many bytes to others in the last step; called right before `step`."""

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """`step` steps are done; called every `log_interval` steps with the last one's values."""

    def evaluation_start(self, step: int) -> None:
        """An evaluation begins, after `step` steps."""

    def evaluation(self, result: Evaluation) -> None:
        """An evaluation is done."""

    def save(self, step: int) -> None:
        """The state after `step` steps is to be saved; maybe called again for the same step."""
