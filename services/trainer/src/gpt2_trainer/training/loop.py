"""The training loop: updates, and between them reports, validations, samples and checkpoints.

After an interruption, however it came, the loop goes on from the newest checkpoint and gives the same numbers as a
training that was never interrupted: data, noise and learning rate depend on the step alone, and all else is in the
checkpoint.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpt2_common.errors import FailedPrecondition, JobSuspended
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import TrainingOptions
from gpt2_trainer.formats.checkpoint import Checkpoint, TrainingState, Validation
from gpt2_trainer.model.network import Network
from gpt2_trainer.model.weights import Weights, cut_vocabulary, pad_vocabulary
from gpt2_trainer.training.checkpoints import CheckpointFolder
from gpt2_trainer.training.data import TrainingData, ValidationData
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.reports import TrainingLogs, log_report
from gpt2_trainer.training.step import Stepper, StepResult, TrainingStep, create_stepper

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingSurroundings:
    """What the loop works with."""

    train: TrainingData
    validation: ValidationData
    checkpoints: CheckpointFolder
    logs: TrainingLogs
    take_samples: Callable[[int, Tensors], None]
    """Takes samples after a number of steps, with the weights of then."""
    report: Callable[[str, int, Mapping[str, float]], None]
    """Says how far the training is: phase, steps made, figures."""
    check_interrupted: Callable[[], None]
    """Raises JobInterrupted when the training is to stop."""


class TrainingLoop:
    """One training.

    Args:
        options: How to train.
        start: Weights and state to begin or go on with.
        surroundings: What to work with.
    """

    def __init__(self, options: TrainingOptions, start: Checkpoint, surroundings: TrainingSurroundings) -> None:
        self._options = options
        self._architecture: Architecture = start.architecture
        self._state = start.state
        self._around = surroundings
        network = Network(
            architecture=start.architecture,
            precision=options.precision,
            rematerialise=options.memory_saving_gradients,
        )
        slots = pad_vocabulary(start.slots, start.architecture) if start.state.step else None
        weights = pad_vocabulary(start.weights, start.architecture)
        self._stepper: Stepper = create_stepper(TrainingStep(network, options), weights, slots)
        self._results: list[StepResult] = []
        self._compiled = False
        self._figures: dict[str, float] = {}
        self._reported_at = time.monotonic()
        self._reported_step = start.state.step

    def run(self) -> TrainingState:
        """Trains to the last step and returns the state there.

        Raises:
            FailedPrecondition: The loss is no number any more.
            JobInterrupted: It was told to stop; when it is to go on later, a checkpoint was saved.
        """
        if not self._state.validations:
            self._validate()
        while self._state.step < self._options.steps:
            self._check_interrupted()
            self._update()
            self._after_update()
        return self._state

    def _update(self) -> None:
        step = self._state.step
        self._results.append(self._stepper.train(step, *self._around.train.batch(step)))
        self._state = replace(self._state, step=step + 1)
        if not self._compiled:
            self._begin_clock()

    def _after_update(self) -> None:
        if self._is_due(self._options.report_every):
            self._report()
        improved = self._is_due(self._options.validate_every) and self._validate()
        if self._is_due(self._options.sample_every):
            self._around.report("sampling", self._state.step, self._figures)
            self._around.take_samples(self._state.step, self._stepper.tensors())
        if improved or self._is_due(self._options.save_every):
            self._save()

    def _is_due(self, every: int) -> bool:
        step = self._state.step
        return step == self._options.steps or (every > 0 and step % every == 0)

    def _begin_clock(self) -> None:
        """Leaves compilation, which the first step waits for, out of the speed."""
        self._fetch_losses()
        self._compiled = True
        self._reported_at = time.monotonic()
        self._reported_step = self._state.step

    def _fetch_losses(self) -> None:
        """Waits for the steps under way, and checks that their losses are numbers."""
        first = self._state.step - len(self._results) + 1
        results, self._results = self._results, []
        for number, result in enumerate(results, start=first):
            loss, norm = float(result.loss), float(result.gradient_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise FailedPrecondition(_diverged(number, loss, norm, self._around.checkpoints.steps()))
            self._figures |= {"learning_rate": float(result.learning_rate), "gradient_norm": norm}
            losses = [*self._state.unreported_losses, loss]
            self._state = replace(self._state, unreported_losses=losses)

    def _report(self) -> None:
        self._fetch_losses()
        step, now = self._state.step, time.monotonic()
        seconds = (now - self._reported_at) / max(1, step - self._reported_step)
        self._figures |= {
            "loss": float(np.mean(self._state.unreported_losses)),
            "tokens_per_second": self._options.tokens_per_step / max(seconds, 1e-9),
            "seconds_per_step": seconds,
        }
        self._state = replace(self._state, unreported_losses=[])
        self._reported_at, self._reported_step = now, step
        names = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")
        self._around.logs.figures(step, {name: self._figures[name] for name in names})
        log_report(step, self._options.steps, self._figures)
        self._around.report("training", step, self._figures)

    def _validate(self) -> bool:
        """Validates. Returns whether the loss is the best of a trained state so far."""
        self._fetch_losses()
        started = time.monotonic()
        step = self._state.step
        self._around.report("validating", step, self._figures)
        losses: list[Any] = []
        for inputs, targets, count in self._around.validation.batches():
            self._check_interrupted()
            losses.append(self._stepper.validate(inputs, targets)[:count])
        loss = float(np.mean(np.concatenate(losses), dtype=np.float64))
        figures = {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}
        self._figures |= figures
        self._around.logs.figures(step, figures)
        _log.info("step %d: validation loss %.4f, perplexity %.2f", step, loss, figures["validation_perplexity"])
        before = self._state.best
        validation = Validation(step=step, loss=loss)
        self._state = replace(self._state, validations=[*self._state.validations, validation])
        self._reported_at += time.monotonic() - started
        return step > 0 and (before is None or loss < before.loss)

    def _save(self) -> None:
        self._fetch_losses()
        started = time.monotonic()
        self._around.report("saving", self._state.step, self._figures)
        self._around.checkpoints.save(self._checkpoint())
        self._reported_at += time.monotonic() - started

    def _checkpoint(self) -> Checkpoint:
        weights: Weights = cut_vocabulary(self._stepper.weights(), self._architecture)
        slots = self._stepper.slots()
        return Checkpoint(architecture=self._architecture, weights=weights, slots=slots, state=self._state)

    def _check_interrupted(self) -> None:
        try:
            self._around.check_interrupted()
        except JobSuspended:
            # Between two steps all is consistent; what was done since the last checkpoint need not be lost.
            if self._state.step not in (0, *self._around.checkpoints.steps()):
                self._save()
            raise


def _diverged(step: int, loss: float, norm: float, saved: list[int]) -> str:
    kept = f"the checkpoint of step {saved[-1]} is kept" if saved else "no checkpoint had been saved"
    return (
        f"the training diverged at step {step}: its loss is {loss} and its gradient norm {norm}; {kept}; "
        "start a new job with a lower learning_rate, a longer warm-up or a lower clip_norm"
    )
