"""Training steps on JAX: a pure function, compiled, that takes over the memory of the state it is given."""

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from gpt2_trainer.model.weights import Weights
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.step import Loss, StepResult, TrainingStep


class JaxStepper:
    """A training's state in JAX arrays.

    Args:
        step: What to compute.
        weights: Weights by name, the vocabulary padded.
        slots: Optimizer slots by name.
    """

    def __init__(self, step: TrainingStep, weights: Weights, slots: Weights) -> None:
        # Copied on the device, as the steps take over the memory of what they are given.
        self._trained = {name: jax.numpy.array(value) for name, value in weights.items() if step.is_trained(name)}
        self._frozen = {name: jax.numpy.array(value) for name, value in weights.items() if not step.is_trained(name)}
        self._slots = {name: jax.numpy.array(value) for name, value in slots.items()}
        self._names = list(weights)

        def update(trained: Tensors, slots: Tensors, frozen: Tensors, number: Any, inputs: Any, targets: Any) -> Any:
            return step.run(_take_gradients, trained | frozen, slots, number, inputs, targets)

        self._update = jax.jit(update, donate_argnums=(0, 1))
        self._losses = jax.jit(step.losses)

    def train(self, step: int, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> StepResult:
        """See Stepper."""
        self._trained, self._slots, result = self._update(
            self._trained, self._slots, self._frozen, np.int32(step), inputs, targets
        )
        return StepResult(*result)

    def validate(self, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float32]:
        """See Stepper."""
        return np.asarray(self._losses(self.tensors(), inputs, targets))

    def weights(self) -> Weights:
        """See Stepper."""
        return {name: np.array(value) for name, value in self.tensors().items()}

    def slots(self) -> Weights:
        """See Stepper."""
        return {name: np.array(value) for name, value in self._slots.items()}

    def tensors(self) -> Tensors:
        """See Stepper."""
        tensors = self._trained | self._frozen
        return {name: tensors[name] for name in self._names}


def _take_gradients(loss_of: Loss, weights: Tensors, inputs: Any, targets: Any) -> tuple[Any, Tensors]:
    loss, gradients = jax.value_and_grad(loss_of)(weights, inputs, targets)
    return loss, gradients
