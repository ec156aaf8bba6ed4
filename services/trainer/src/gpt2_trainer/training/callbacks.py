"""Callbacks that measure a training and save it: metrics, validations, checkpoints."""

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np

from gpt2_contracts.metrics import (
    GRADIENT_NORM,
    LEARNING_RATE,
    LOSS,
    TOKENS_PER_SECOND,
    VALIDATION_BITS_PER_BYTE,
    VALIDATION_LOSS,
    VALIDATION_PERPLEXITY,
    bits_per_byte,
    perplexity,
)
from gpt2_trainer.formats.checkpoint import Validation
from gpt2_trainer.training.callback import Callback
from gpt2_trainer.training.checkpoint_manager import CheckpointManager
from gpt2_trainer.training.data import TrainingData, ValidationData
from gpt2_trainer.training.loop import TrainingLoop
from gpt2_trainer.training.metrics_log import REPORTED, MetricsLog, log_report
from gpt2_trainer.training.step import StepResult

_log = logging.getLogger(__name__)


class MetricsReporter(Callback):
    """Reports metrics every `log_every` steps. Keeps `state.unreported_losses`.

    Args:
        logs: Where they are written.
        data: The train split, for the epoch.
        flops_per_token: Floating-point operations per token, for MFU.
        peak_flops: Peak FLOP/s of all devices together; 0: unknown.
    """

    def __init__(self, logs: MetricsLog, data: TrainingData, flops_per_token: float, peak_flops: float) -> None:
        self._logs = logs
        self._windows = data.windows
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._reported_step = 0
        self._compiled = False
        self._since_step = 0
        self._since_seconds = 0.0

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """See Callback."""
        self._reported_step = loop.state.step

    def on_step_result(self, loop: TrainingLoop, step: int, result: StepResult) -> None:  # noqa: ARG002
        """See Callback."""
        loop.metrics[LEARNING_RATE] = result.learning_rate
        if result.applied:
            loop.metrics[GRADIENT_NORM] = result.gradient_norm
            loop.state = replace(loop.state, unreported_losses=[*loop.state.unreported_losses, result.loss])

    def on_step_end(self, loop: TrainingLoop) -> None:
        """See Callback."""
        if not self._compiled:
            # The first step waits for compilation, which does not count in the speed.
            loop.fetch_results()
            self._compiled = True
            self._since_step, self._since_seconds = loop.state.step, loop.update_seconds
            if not loop.is_due(loop.config.log_every):
                loop.report("training")
        if loop.is_due(loop.config.log_every):
            self._report(loop)

    def on_validation_end(self, loop: TrainingLoop) -> None:
        """Reports the last step where only its validation ends the training; see Callback."""
        if loop.stop_reason:
            self._report(loop)

    def _report(self, loop: TrainingLoop) -> None:
        step = loop.state.step
        if step == self._reported_step:
            return
        loop.fetch_results()
        now = loop.update_seconds
        seconds = (now - self._since_seconds) / max(1, step - self._since_step)
        losses = loop.state.unreported_losses
        rate = loop.config.tokens_per_step / max(seconds, 1e-9)
        loop.metrics |= {
            LOSS: float(np.mean(losses)) if losses else math.nan,
            TOKENS_PER_SECOND: rate,
            "seconds_left": (loop.config.steps - step) * seconds,
            "epoch": step * loop.config.batch_size / self._windows,
            "skipped_steps": float(loop.state.skipped_steps),
        }
        if loop.config.embeddings_only_steps:
            loop.metrics["embeddings_only"] = float(step <= loop.config.embeddings_only_steps)
        if self._peak_flops:
            loop.metrics["mfu"] = rate * self._flops_per_token / self._peak_flops
        loop.state = replace(loop.state, unreported_losses=[])
        self._reported_step = self._since_step = step
        self._since_seconds = now
        shown = {name: loop.metrics[name] for name in REPORTED if name in loop.metrics}
        self._logs.log_metrics(step, shown)
        log_report(step, loop.config.steps, shown)
        loop.report("training")


class FreezingReporter(Callback):
    """Logs which weights are trained, where a training begins with the token embedding alone."""

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """See Callback."""
        last = loop.config.embeddings_only_steps
        if loop.state.step < last:
            _log.info("steps %d to %d train the token embedding alone", loop.state.step + 1, last)

    def on_step_complete(self, loop: TrainingLoop) -> None:
        """See Callback."""
        if loop.config.embeddings_only_steps == loop.state.step and not loop.stop_reason:
            _log.info("step %d was the last that trains the token embedding alone", loop.state.step)


class Validator(Callback):
    """Validates before the first update and every `validate_every` steps. Keeps `state.validations`.

    Args:
        data: The validation sequences.
        logs: Where the loss is written.
        bytes_per_token: Mean bytes of text in a target; 0: not known, as the dataset carries no tokenizer.
    """

    def __init__(self, data: ValidationData, logs: MetricsLog, bytes_per_token: float) -> None:
        self._data = data
        self._logs = logs
        self._bytes_per_token = bytes_per_token

    def on_train_begin(self, loop: TrainingLoop) -> None:
        """See Callback."""
        if not loop.state.validations:
            self._validate(loop)

    def on_step_end(self, loop: TrainingLoop) -> None:
        """See Callback."""
        if loop.is_due(loop.config.validate_every):
            self._validate(loop)

    def _validate(self, loop: TrainingLoop) -> None:
        loop.fetch_results()
        step = loop.state.step
        with loop.outside_updates():
            loop.report("validating")
            losses: list[Any] = []
            for inputs, targets, count in self._data.batches():
                loop.check_interrupted()
                losses.append(loop.validate(inputs, targets)[:count])
            loss = float(np.mean(np.concatenate(losses), dtype=np.float64))
            metrics = {VALIDATION_LOSS: loss, VALIDATION_PERPLEXITY: perplexity(loss)}
            text = f"step {step}: validation loss {loss:.4f}, perplexity {metrics[VALIDATION_PERPLEXITY]:.2f}"
            if self._bytes_per_token:
                metrics[VALIDATION_BITS_PER_BYTE] = bits_per_byte(loss, self._bytes_per_token)
                text += f", {metrics[VALIDATION_BITS_PER_BYTE]:.4f} bits per byte"
            loop.metrics |= metrics
            self._logs.log_metrics(step, metrics)
            _log.info("%s", text)
            bits = metrics.get(VALIDATION_BITS_PER_BYTE)
            validations = [*loop.state.validations, Validation(step=step, loss=loss, bits_per_byte=bits)]
            loop.state = replace(loop.state, validations=validations)
        loop.validated()


class Checkpointer(Callback):
    """Saves every `save_every` steps, after the last step, when a validation is the best so far, and when suspended.

    Of several nodes the first one writes.

    Args:
        checkpoints: Where the checkpoints are.
    """

    def __init__(self, checkpoints: CheckpointManager) -> None:
        self._checkpoints = checkpoints

    def on_step_complete(self, loop: TrainingLoop) -> None:
        """See Callback."""
        best = loop.state.best_trained
        is_best = best is not None and best.step == loop.state.step
        if is_best or loop.stop_reason or (loop.is_due(loop.config.save_every) and not self._is_skipped(loop)):
            self._save(loop)

    def on_suspend(self, loop: TrainingLoop) -> None:
        """See Callback."""
        if loop.nodes.from_first(loop.state.step not in (0, *self._checkpoints.steps())):
            self._save(loop)

    def _is_skipped(self, loop: TrainingLoop) -> bool:
        """Whether the latest update is skipped: its weights may be the cause, and earlier ones are worth keeping."""
        loop.fetch_results()
        return loop.state.consecutive_skipped_steps > 0

    def _save(self, loop: TrainingLoop) -> None:
        loop.fetch_results()
        with loop.outside_updates():
            loop.report("saving")
            checkpoint = loop.checkpoint()
            if loop.nodes.is_first:
                self._checkpoints.save(checkpoint)
