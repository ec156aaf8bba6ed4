"""The state of a training on the backend that Keras was started with, and the steps that change it.

The backends differ in how they take a gradient and where they keep the state; `step_tensorflow.py` and `step_jax.py`
each do that and nothing else. What a step computes is the same on all of them: see `step.py`.
"""

from typing import Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from gpt2_trainer.model.weights import Weights
from gpt2_trainer.training import guard
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.step import StepResult, TrainingStep


class Stepper(Protocol):
    """The state of a training on one backend: weights and optimizer slots."""

    def train(self, step: int, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> StepResult:
        """Makes the update number `step`, from 0. Token ids are int32 [batch_size, context_length]."""

    def validate(self, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float32]:
        """Mean loss of each sequence, float32 [batch]; changes nothing."""

    def weights(self) -> Weights:
        """A copy of the weights, the vocabulary padded."""

    def slots(self) -> Weights:
        """A copy of the optimizer's slots by `<slot name>/<weight name>`."""

    def tensors(self) -> Tensors:
        """The weights where they are, to read only, until the next step."""


def create_stepper(step: TrainingStep, weights: Weights, slots: Weights | None) -> Stepper:
    """Puts a training's state on the backend that Keras was started with.

    Args:
        step: What to compute.
        weights: Weights by name, the vocabulary padded.
        slots: Optimizer slots; None: new ones.
    """
    # Sums over all weights are the same to the last bit only in the same order, wherever the weights come from.
    weights = dict(sorted(weights.items()))
    # A training that an older version began has no guard yet.
    slots = step.first_slots(weights) if slots is None else guard.first_guard() | slots
    if keras.config.backend() == "jax":
        from gpt2_trainer.training.step_jax import JaxStepper  # imports JAX

        return JaxStepper(step, weights, slots)
    from gpt2_trainer.training.step_tensorflow import TensorFlowStepper  # imports TensorFlow

    return TensorFlowStepper(step, weights, slots)
