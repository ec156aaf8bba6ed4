"""Callbacks that end a training: its steps, its time, no improvement, and updates that diverge."""

import logging
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from gpt2_common.errors import FailedPrecondition
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import TrainingState, Validation
from gpt2_trainer.training.callback import Callback
from gpt2_trainer.training.checkpoint_manager import CheckpointManager

if TYPE_CHECKING:  # both import Keras
    from gpt2_trainer.training.loop import TrainingLoop
    from gpt2_trainer.training.step import StepResult

_log = logging.getLogger(__name__)


class StepLimit(Callback):
    """Ends the training after `steps`."""

    def on_step_end(self, loop: "TrainingLoop") -> None:
        """See Callback."""
        if loop.state.step >= loop.config.steps:
            loop.stop("steps")


class TimeLimit(Callback):
    """Ends the training after `max_seconds`, summed over attempts. Keeps `state.seconds`."""

    def __init__(self) -> None:
        self._began_at = 0.0

    def on_train_begin(self, loop: "TrainingLoop") -> None:
        """See Callback."""
        self._began_at = time.monotonic() - loop.state.seconds

    def on_step_end(self, loop: "TrainingLoop") -> None:
        """See Callback."""
        if loop.config.max_seconds is None:
            return
        # Updates that are still under way on the device take their time too.
        loop.fetch_results()
        if loop.nodes.any(time.monotonic() - self._began_at >= loop.config.max_seconds):
            loop.stop("max_seconds")

    def on_save(self, loop: "TrainingLoop") -> None:
        """See Callback."""
        if loop.config.max_seconds is not None:
            loop.state = replace(loop.state, seconds=time.monotonic() - self._began_at)


class EarlyStopping(Callback):
    """Ends the training after `early_stopping_patience` validations without improvement."""

    def on_validation_end(self, loop: "TrainingLoop") -> None:
        """See Callback."""
        if loop.state.step > loop.config.first_step and is_exhausted(loop.config, loop.state.validations):
            loop.stop("early_stopping")


class SkippedUpdateLimit(Callback):
    """Fails the training after `max_consecutive_skipped_updates`. Keeps the counts of skipped steps in the state.

    Args:
        checkpoints: Checkpoints of the training, which the error names.
    """

    def __init__(self, checkpoints: CheckpointManager) -> None:
        self._checkpoints = checkpoints

    def on_step_result(self, loop: "TrainingLoop", step: int, result: "StepResult") -> None:
        """See Callback."""
        if result.applied:
            loop.state = replace(loop.state, consecutive_skipped_steps=0)
            return
        _log.warning("step %d is skipped: loss %g, gradient norm %g", step, result.loss, result.gradient_norm)
        consecutive = loop.state.consecutive_skipped_steps + 1
        loop.state = replace(
            loop.state, skipped_steps=loop.state.skipped_steps + 1, consecutive_skipped_steps=consecutive
        )
        if consecutive >= loop.config.max_consecutive_skipped_updates:
            raise FailedPrecondition(_diverged(step, result, loop.state, self._checkpoints.steps()))


def is_exhausted(config: ResolvedTrainingConfig, validations: list[Validation]) -> bool:
    """Whether as many validations as the patience, all after the first update, have brought no improvement."""
    if config.early_stopping_patience is None:
        return False
    lowest, without = math.inf, 0
    for validation in validations:
        if validation.step <= config.first_step:
            continue
        if validation.loss < lowest - config.early_stopping_min_delta:
            lowest, without = validation.loss, 0
        else:
            without += 1
    return without >= config.early_stopping_patience


def _diverged(step: int, result: "StepResult", state: TrainingState, saved: list[int]) -> str:
    best = state.best_trained
    kept = f"the checkpoint of step {saved[-1]} is kept" if saved else "no checkpoint was saved"
    if best is not None and best.step in saved and best.step != saved[-1]:
        kept += f", and that of step {best.step}, whose validation loss {best.loss:.4f} is the lowest"
    return (
        f"the training diverged at step {step}: its loss is {result.loss} and its gradient norm "
        f"{result.gradient_norm}, and {state.consecutive_skipped_steps} consecutive updates were skipped; {kept}; "
        "start a new job with a lower learning_rate, a longer warm-up or a lower clip_norm, or, where such updates are "
        "right, with a greater spike_factor"
    )
