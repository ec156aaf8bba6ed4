"""Executes training steps on the backend of Keras, and holds the state of the training there.

The backends differ in how they compute gradients and where they keep the state; `executor_jax.py` and
`executor_tensorflow.py` do that alone. The arithmetic of a step is the same on all of them: see `step.py`.
"""

from typing import Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from gpt2_trainer.model.weights import Weights
from gpt2_trainer.training import spike_detection
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.step import StepResult, TrainingStep


class StepExecutor(Protocol):
    """Weights and optimizer slots on one backend, and the steps that change them."""

    def local_rows(self) -> NDArray[np.int64] | None:
        """The sequences of each batch that this process computes, where several nodes share it; None: all."""

    def train(self, step: int, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> StepResult:
        """Runs step number `step`, from 0. Token ids are int32 [batch_size or local rows, context_length]."""

    def validate(self, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float32]:
        """Mean loss of each sequence by the `evaluated` weights, float32 [batch]; changes nothing."""

    def weights(self) -> Weights:
        """A copy of the weights, the vocabulary padded."""

    def slots(self) -> Weights:
        """A copy of the optimizer's slots by `<slot name>/<weight name>`."""

    def tensors(self) -> Tensors:
        """The weights on the device, read-only, until the next step."""

    def evaluated(self) -> Tensors:
        """As `tensors` on devices of this process, with averages in place of weights where the training keeps them."""


def create_executor(step: TrainingStep, weights: Weights, slots: Weights | None) -> StepExecutor:
    """Puts a training's state on the backend of Keras.

    Args:
        step: The arithmetic.
        weights: Weights by name, the vocabulary padded.
        slots: Optimizer slots; None: new ones.
    """
    # Sums over all weights are bit-identical only in the same order, wherever the weights come from.
    weights = dict(sorted(weights.items()))
    # A checkpoint of an older version has no slots of spike detection.
    slots = step.first_slots(weights) if slots is None else spike_detection.initial_statistics() | slots
    if keras.config.backend() == "jax":
        from gpt2_trainer.training.executor_jax import JaxStepExecutor  # imports JAX

        return JaxStepExecutor(step, weights, slots)
    from gpt2_trainer.training.executor_tensorflow import TensorFlowStepExecutor  # imports TensorFlow

    return TensorFlowStepExecutor(step, weights, slots)
