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
from gpt2_trainer.model.adapters import is_adapter
from gpt2_trainer.model.network import Network
from gpt2_trainer.model.weights import Weights, cut_vocabulary, pad_vocabulary
from gpt2_trainer.training.checkpoints import CheckpointFolder
from gpt2_trainer.training.data import TrainingData, ValidationData
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.reports import REPORTED, TrainingLogs, log_report
from gpt2_trainer.training.speed import flops_per_token
from gpt2_trainer.training.step import StepResult, TrainingStep
from gpt2_trainer.training.stepper import Stepper, create_stepper

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingSurroundings:
    """What the loop works with."""

    train: TrainingData
    validation: ValidationData
    checkpoints: CheckpointFolder
    logs: TrainingLogs
    peak_flops: float
    """Greatest floating-point operations a second of all devices together; 0: unknown."""
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
        weights = pad_vocabulary(start.weights, start.architecture) | start.adapters
        self._step = TrainingStep(network, options)
        self._stepper: Stepper = create_stepper(self._step, weights, slots)
        self._results: list[StepResult] = []
        self._compiled = False
        self._figures: dict[str, float] = {}
        self._flops_per_token = flops_per_token(start.architecture, options.context_length)
        self._reported_at = time.monotonic()
        self._reported_step = start.state.step
        self._began_at = time.monotonic() - start.state.seconds

    def run(self) -> TrainingState:
        """Trains until a limit ends it, and returns the state there.

        Raises:
            FailedPrecondition: Too many updates in a row were left out, as they would have done harm.
            JobInterrupted: It was told to stop; when it is to go on later, a checkpoint was saved.
        """
        if not self._state.validations:
            self._validate()
        if self._state.step == 0 and self._options.sample_every:
            # What the later ones are compared with.
            self._sample()
        while not self._state.stopped_because:
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
        stop = "steps" if self._state.step == self._options.steps else "max_seconds" if self._is_out_of_time() else ""
        if stop or self._is_due(self._options.report_every):
            self._report()
        improved = bool(stop or self._is_due(self._options.validate_every)) and self._validate()
        if not stop and is_exhausted(self._options, self._state.validations):
            stop = "early_stopping"
            if self._state.step != self._reported_step:
                self._report()
        if stop or self._is_due(self._options.sample_every):
            self._sample()
        self._state = replace(self._state, stopped_because=stop)
        if improved or stop or (self._is_due(self._options.save_every) and not self._latest_is_skipped()):
            self._save()

    def _is_due(self, every: int) -> bool:
        return every > 0 and self._state.step % every == 0

    def _is_out_of_time(self) -> bool:
        if not self._options.max_seconds:
            return False
        # Steps that are only on their way to the device take their time too.
        self._fetch_results()
        return time.monotonic() - self._began_at >= self._options.max_seconds

    def _latest_is_skipped(self) -> bool:
        """Whether the weights are as before the latest update, and may be what is wrong: others are worth keeping."""
        self._fetch_results()
        return self._state.skipped_in_a_row > 0

    def _begin_clock(self) -> None:
        """Leaves compilation, which the first step waits for, out of the speed."""
        self._fetch_results()
        self._compiled = True
        self._reported_at = time.monotonic()
        self._reported_step = self._state.step

    def _fetch_results(self) -> None:
        """Waits for the steps under way, and counts those that were left out."""
        first = self._state.step - len(self._results) + 1
        results, self._results = self._results, []
        for number, result in enumerate(results, start=first):
            loss, norm = float(result.loss), float(result.gradient_norm)
            self._figures["learning_rate"] = float(result.learning_rate)
            if bool(result.made):
                self._figures["gradient_norm"] = norm
                losses = [*self._state.unreported_losses, loss]
                self._state = replace(self._state, unreported_losses=losses, skipped_in_a_row=0)
            else:
                self._skip(number, loss, norm)

    def _skip(self, step: int, loss: float, norm: float) -> None:
        _log.warning("step %d is left out: its loss is %g and its gradient norm %g", step, loss, norm)
        in_a_row = self._state.skipped_in_a_row + 1
        skipped = self._state.skipped_steps + 1
        self._state = replace(self._state, skipped_steps=skipped, skipped_in_a_row=in_a_row)
        if in_a_row >= self._options.most_skipped_in_a_row:
            raise FailedPrecondition(
                _diverged(step, in_a_row, loss, norm, self._around.checkpoints.steps(), self._state.best_trained)
            )

    def _report(self) -> None:
        self._fetch_results()
        step, now = self._state.step, time.monotonic()
        seconds = (now - self._reported_at) / max(1, step - self._reported_step)
        losses = self._state.unreported_losses
        rate = self._options.tokens_per_step / max(seconds, 1e-9)
        self._figures |= {
            "loss": float(np.mean(losses)) if losses else math.nan,
            "tokens_per_second": rate,
            "seconds_left": (self._options.steps - step) * seconds,
            "epoch": step * self._options.batch_size / self._around.train.windows,
            "skipped_steps": float(self._state.skipped_steps),
        }
        if self._around.peak_flops:
            self._figures["mfu"] = rate * self._flops_per_token / self._around.peak_flops
        self._state = replace(self._state, unreported_losses=[])
        self._reported_at, self._reported_step = now, step
        shown = {name: self._figures[name] for name in REPORTED if name in self._figures}
        self._around.logs.figures(step, shown)
        log_report(step, self._options.steps, shown)
        self._around.report("training", step, self._figures)

    def _validate(self) -> bool:
        """Validates. Returns whether the loss is the best of a trained state so far."""
        self._fetch_results()
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
        before = self._state.best_trained
        validation = Validation(step=step, loss=loss)
        self._state = replace(self._state, validations=[*self._state.validations, validation])
        self._reported_at += time.monotonic() - started
        return step > 0 and math.isfinite(loss) and (before is None or loss < before.loss)

    def _sample(self) -> None:
        started = time.monotonic()
        self._around.report("sampling", self._state.step, self._figures)
        self._around.take_samples(self._state.step, self._step.merged(self._stepper.tensors()))
        self._reported_at += time.monotonic() - started

    def _save(self) -> None:
        self._fetch_results()
        started = time.monotonic()
        self._around.report("saving", self._state.step, self._figures)
        self._around.checkpoints.save(self._checkpoint())
        self._reported_at += time.monotonic() - started

    def _checkpoint(self) -> Checkpoint:
        tensors = self._stepper.weights()
        weights: Weights = {name: value for name, value in tensors.items() if not is_adapter(name)}
        if self._options.max_seconds:
            self._state = replace(self._state, seconds=time.monotonic() - self._began_at)
        return Checkpoint(
            architecture=self._architecture,
            weights=cut_vocabulary(weights, self._architecture),
            slots=self._stepper.slots(),
            state=self._state,
            adapters={name: value for name, value in tensors.items() if is_adapter(name)},
        )

    def _check_interrupted(self) -> None:
        try:
            self._around.check_interrupted()
        except JobSuspended:
            # Between two steps all is consistent; what was done since the last checkpoint need not be lost.
            if self._state.step not in (0, *self._around.checkpoints.steps()):
                self._save()
            raise


def is_exhausted(options: TrainingOptions, validations: list[Validation]) -> bool:
    """Whether as many validations as the options' patience, of a trained state, have brought no improvement."""
    if not options.early_stopping_patience:
        return False
    lowest, without = math.inf, 0
    for validation in validations:
        if validation.step <= options.first_step:
            continue
        if validation.loss < lowest - options.early_stopping_min_delta:
            lowest, without = validation.loss, 0
        else:
            without += 1
    return without >= options.early_stopping_patience


def _diverged(step: int, in_a_row: int, loss: float, norm: float, saved: list[int], best: Validation | None) -> str:
    kept = f"the checkpoint of step {saved[-1]} is kept" if saved else "no checkpoint had been saved"
    if best is not None and best.step in saved and best.step != saved[-1]:
        kept += f", and that of step {best.step}, whose validation loss {best.loss:.4f} is the lowest"
    return (
        f"the training diverged at step {step}: its loss is {loss} and its gradient norm {norm}, and {in_a_row} "
        f"updates in a row were left out; {kept}; start a new job with a lower learning_rate, a longer warm-up or "
        "a lower clip_norm, or, where such updates are right, with a greater spike_factor"
    )
