"""The training loop: updates, and callbacks around them.

A resumed training computes the same numbers as one that was never interrupted: data, noise and learning rate depend on
the step alone, and whatever else decides a number is in the state that checkpoints hold.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2_common.errors import JobSuspended
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import Checkpoint, TrainingState
from gpt2_trainer.kernels.selection import create_model
from gpt2_trainer.model.lora import is_adapter
from gpt2_trainer.model.weights import Weights, cut_vocabulary, pad_vocabulary
from gpt2_trainer.training.callback import Callback
from gpt2_trainer.training.data import TrainingData
from gpt2_trainer.training.executor import StepExecutor, create_executor
from gpt2_trainer.training.nodes import Nodes
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.step import StepResult, TrainingStep


class TrainingLoop:
    """One attempt of one training.

    Args:
        config: The training's configuration.
        start: Weights and state to start or resume with.
        data: Batches of the train split.
        callbacks: What happens around updates, in order.
        report: Takes progress: phase, updates made, metrics.
        check_interrupted: Raises JobInterrupted when the job is cancelled or suspended.
        nodes: The nodes that compute it. Each runs this loop, with callbacks that take the same decisions.
    """

    def __init__(
        self,
        config: ResolvedTrainingConfig,
        start: Checkpoint,
        data: TrainingData,
        callbacks: Sequence[Callback],
        report: Callable[[str, int, Mapping[str, float]], None],
        check_interrupted: Callable[[], None],
        nodes: Nodes,
    ) -> None:
        self.config = config
        self.nodes = nodes
        self.state = start.state
        self.metrics: dict[str, float] = {}
        """The latest value of each metric."""
        self.stop_reason = ""
        """Why the training ends after this step; empty: it continues."""
        self._architecture = start.architecture
        self._data = data
        self._callbacks = callbacks
        self._report = report
        self._check_interrupted = check_interrupted
        model = create_model(start.architecture, config.precision, training=True, remat=config.gradient_checkpointing)
        slots = pad_vocabulary(start.slots, start.architecture) if start.state.step else None
        weights = pad_vocabulary(start.weights, start.architecture) | start.adapters
        self._step = TrainingStep(model, config)
        self._executor: StepExecutor = create_executor(self._step, weights, slots)
        self._rows = self._executor.local_rows()
        self._results: list[StepResult] = []
        self._began_at = time.monotonic()

    def run(self) -> TrainingState:
        """Trains until a callback stops it. Returns the final state.

        Raises:
            FailedPrecondition: Too many consecutive updates were skipped.
            JobInterrupted: The job was cancelled or suspended; when suspended, a checkpoint was saved.
        """
        for callback in self._callbacks:
            callback.on_train_begin(self)
        if not self.state.step_complete:
            self._end_step()
        if not self.state.stopped_because:
            # The first update waits for its compilation.
            self.report("compiling")
        while not self.state.stopped_because:
            self.check_interrupted()
            step = self.state.step
            self._results.append(self._executor.train(step, *self._data.batch(step, self._rows)))
            self.state = replace(self.state, step=step + 1)
            self._end_step()
        return self.state

    def stop(self, reason: str) -> None:
        """Ends the training after this step; the first reason counts."""
        self.stop_reason = self.stop_reason or reason

    def is_due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps, and after the last one, happens now."""
        return bool(self.stop_reason) or (every is not None and self.state.step % every == 0)

    def fetch_results(self) -> None:
        """Waits for the updates under way, and passes their results to the callbacks."""
        first = self.state.step - len(self._results) + 1
        results, self._results = self._results, []
        for step, result in enumerate(results, start=first):
            fetched = StepResult(
                float(result.loss), float(result.gradient_norm), float(result.learning_rate), bool(result.applied)
            )
            for callback in self._callbacks:
                callback.on_step_result(self, step, fetched)

    def validate(self, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float32]:
        """See StepExecutor.validate."""
        return self._executor.validate(inputs, targets)

    def validated(self) -> None:
        """Tells the callbacks of a validation that is now in the state."""
        for callback in self._callbacks:
            callback.on_validation_end(self)

    def weights(self) -> Tensors:
        """The model's evaluated weights on this process's devices, additions of LoRA merged, until the next update."""
        return self._step.merged(self._executor.evaluated())

    def checkpoint(self) -> Checkpoint:
        """The training as it is between two updates."""
        self.fetch_results()
        for callback in self._callbacks:
            callback.on_save(self)
        tensors = self._executor.weights()
        weights: Weights = {name: value for name, value in tensors.items() if not is_adapter(name)}
        return Checkpoint(
            architecture=self._architecture,
            weights=cut_vocabulary(weights, self._architecture),
            slots=self._executor.slots(),
            state=self.state,
            adapters={name: value for name, value in tensors.items() if is_adapter(name)},
        )

    def report(self, phase: str) -> None:
        """Reports progress, with the latest metrics."""
        self._report(phase, self.state.step, self.metrics)

    def check_interrupted(self) -> None:
        """Raises JobInterrupted when the job is cancelled or suspended."""
        try:
            self.nodes.check_interrupted(self._check_interrupted)
        except JobSuspended:
            for callback in self._callbacks:
                callback.on_suspend(self)
            # The first node may still write, and would end with the others.
            self.nodes.wait_for_all()
            raise

    @property
    def update_seconds(self) -> float:
        """Time of this attempt without that in `outside_updates`."""
        return time.monotonic() - self._began_at

    @contextmanager
    def outside_updates(self) -> Iterator[Any]:
        """Leaves the time of a block out of `update_seconds`."""
        started = time.monotonic()
        yield
        self._began_at += time.monotonic() - started

    def _end_step(self) -> None:
        # A suspension in a validation saves the state with this mark: the next attempt ends the step first.
        self.state = replace(self.state, step_complete=False)
        for callback in self._callbacks:
            callback.on_step_end(self)
        self.state = replace(self.state, step_complete=True, stopped_because=self.stop_reason)
        for callback in self._callbacks:
            callback.on_step_complete(self)
