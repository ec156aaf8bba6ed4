"""Training steps on JAX: a pure function, compiled, that takes over the memory of the state it is given."""

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from gpt2_trainer.model.weights import Weights
from gpt2_trainer.training.distribution import Distribution, choose_distribution
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.step import Loss, StepResult, TrainingStep


class JaxStepper:
    """A training's state in JAX arrays, on one device or on several.

    Args:
        step: What to compute.
        weights: Weights by name, the vocabulary padded.
        slots: Optimizer slots by name.

    Raises:
        InvalidRequest: There are not as many devices as the options ask for.
    """

    def __init__(self, step: TrainingStep, weights: Weights, slots: Weights) -> None:
        self._devices = choose_distribution(step.options)
        self._trained = self._placed({name: value for name, value in weights.items() if step.is_trained(name)})
        self._frozen = self._placed({name: value for name, value in weights.items() if not step.is_trained(name)})
        self._slots = self._placed(slots)
        self._names = list(weights)

        def update(trained: Tensors, slots: Tensors, frozen: Tensors, number: Any, inputs: Any, targets: Any) -> Any:
            weights = trained | frozen
            loss, gradients = step.gradients(self._take_gradients, weights, number, inputs, targets)
            return step.update(weights, slots, number, loss, gradients)

        self._update = jax.jit(update, donate_argnums=(0, 1), **_outputs(self._devices, self._trained, self._slots))
        self._losses = jax.jit(step.losses)

    def train(self, step: int, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> StepResult:
        """See Stepper."""
        self._trained, self._slots, result = self._update(
            self._trained, self._slots, self._frozen, np.int32(step), inputs, targets
        )
        return StepResult(*result)

    def validate(self, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float32]:
        """See Stepper."""
        return np.asarray(self._losses(self.tensors(), *self._divided(inputs, targets)))

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

    def _placed(self, values: Weights) -> Tensors:
        if self._devices is not None:
            return {name: self._devices.place(name, value) for name, value in values.items()}
        # Copied on the device, as the steps take over the memory of what they are given.
        return {name: jax.numpy.array(value) for name, value in values.items()}

    def _divided(self, *batch: Any) -> tuple[Any, ...]:
        return batch if self._devices is None else tuple(self._devices.divide(tensor) for tensor in batch)

    def _take_gradients(self, loss_of: Loss, weights: Tensors, inputs: Any, targets: Any) -> tuple[Any, Tensors]:
        loss, gradients = jax.value_and_grad(loss_of)(weights, *self._divided(inputs, targets))
        return loss, gradients


def _outputs(devices: Distribution | None, trained: Tensors, slots: Tensors) -> dict[str, Any]:
    """Keeps the state where it is from step to step, or each step would be compiled and copied anew."""
    if devices is None:
        return {}
    places = [{name: value.sharding for name, value in state.items()} for state in (trained, slots)]
    return {"out_shardings": (*places, devices.everywhere())}
