"""What happens around the updates of a training: the interface of the loop's callbacks.

Apart from the loop, so that callbacks can be imported without Keras.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # both import Keras
    from gpt2_trainer.training.loop import TrainingLoop
    from gpt2_trainer.training.step import StepResult


class Callback:
    """What happens around updates; the loop calls its callbacks in the order that it is given them.

    A callback keeps what must survive an interruption in `loop.state`, which checkpoints hold, and nowhere else.
    """

    def on_train_begin(self, loop: "TrainingLoop") -> None:
        """Before the first update of this attempt."""

    def on_step_result(self, loop: "TrainingLoop", step: int, result: "StepResult") -> None:
        """When the result of an update has come from the device: in order, maybe some updates later; as floats."""

    def on_step_end(self, loop: "TrainingLoop") -> None:
        """After an update. `loop.stop_reason` says whether it is the last."""

    def on_validation_end(self, loop: "TrainingLoop") -> None:
        """After a validation, the last of `loop.state.validations`."""

    def on_step_complete(self, loop: "TrainingLoop") -> None:
        """After every callback's `on_step_end`: the state of the step is final."""

    def on_suspend(self, loop: "TrainingLoop") -> None:
        """Before the attempt ends because the job is suspended, between two updates."""

    def on_save(self, loop: "TrainingLoop") -> None:
        """Before the state is saved."""
