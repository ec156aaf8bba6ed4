"""Training steps on JAX: a pure compiled function that donates the buffers of its state."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray

from gpt2_trainer.model.weights import Weights, averaged
from gpt2_trainer.training.distribution import Distribution, choose_distribution
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.step import Loss, StepResult, TrainingStep


class JaxStepExecutor:
    """A training's state in JAX arrays, on one device or on several, of this process or of all nodes.

    Args:
        step: The arithmetic.
        weights: Weights by name, the vocabulary padded.
        slots: Optimizer slots by name.

    Raises:
        InvalidRequest: There are fewer devices than the configuration asks for.
    """

    def __init__(self, step: TrainingStep, weights: Weights, slots: Weights) -> None:
        self._devices = choose_distribution(step.config)
        self._trained = self._placed({name: value for name, value in weights.items() if step.is_trained(name)})
        self._frozen = self._placed({name: value for name, value in weights.items() if not step.is_trained(name)})
        self._slots = self._placed(slots)
        self._names = list(weights)

        def update(trained: Tensors, slots: Tensors, frozen: Tensors, number: Any, inputs: Any, targets: Any) -> Any:
            weights = trained | frozen
            loss, gradients = step.gradients(self._take_gradients, weights, number, inputs, targets)
            return step.update(weights, slots, number, loss, gradients)

        self._update = jax.jit(update, donate_argnums=(0, 1), **_outputs(self._devices, self._trained, self._slots))
        self._batch = (step.config.batch_size, step.config.gradient_accumulation_steps)
        if self._devices is not None and self._devices.spans_nodes:
            self._losses = jax.jit(step.losses, out_shardings=self._devices.replicated())
            self._replicated = jax.jit(lambda value: value, out_shardings=self._devices.replicated())
        else:
            self._losses = jax.jit(step.losses)

    def local_rows(self) -> NDArray[np.int64] | None:
        """See StepExecutor."""
        if self._devices is None or not self._devices.spans_nodes:
            return None
        return self._devices.local_rows(*self._batch)

    def train(self, step: int, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> StepResult:
        """See StepExecutor."""
        if self._devices is not None and self._devices.spans_nodes:
            inputs, targets = (self._devices.assemble_batch(rows, *self._batch) for rows in (inputs, targets))
        self._trained, self._slots, result = self._update(
            self._trained, self._slots, self._frozen, np.int32(step), inputs, targets
        )
        return StepResult(*result)

    def validate(self, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float32]:
        """See StepExecutor."""
        return np.asarray(self._losses(self._evaluated(), *self._divided(inputs, targets)))

    def weights(self) -> Weights:
        """See StepExecutor."""
        return {name: _fetched(value) for name, value in self.tensors().items()}

    def slots(self) -> Weights:
        """See StepExecutor."""
        return {name: _fetched(value) for name, value in self._slots.items()}

    def tensors(self) -> Tensors:
        """See StepExecutor."""
        tensors = self._trained | self._frozen
        return {name: tensors[name] for name in self._names}

    def evaluated(self) -> Tensors:
        """See StepExecutor."""
        return {name: self._local(value) for name, value in self._evaluated().items()}

    def _evaluated(self) -> Tensors:
        return averaged(self.tensors(), self._slots)

    def _local(self, value: Any) -> Any:
        """A value on a device of this process, where it is spread over several nodes."""
        if value.is_fully_addressable:
            return value
        whole = value if value.is_fully_replicated else self._replicated(value)
        return whole.addressable_data(0)

    def _placed(self, values: Weights) -> Tensors:
        if self._devices is not None:
            return {name: self._devices.place(name, value) for name, value in values.items()}
        # Copied on the device, as steps donate the buffers of their arguments.
        return {name: jax.numpy.array(value) for name, value in values.items()}

    def _divided(self, *batch: Any) -> tuple[Any, ...]:
        return batch if self._devices is None else tuple(self._devices.shard_batch(tensor) for tensor in batch)

    def _take_gradients(self, loss_of: Loss, weights: Tensors, inputs: Any, targets: Any) -> tuple[Any, Tensors]:
        loss, gradients = jax.value_and_grad(loss_of)(weights, *self._divided(inputs, targets))
        return loss, gradients


def _fetched(value: Any) -> NDArray[Any]:
    """A copy in the memory of the host; each node asks for it where the value is sharded over several."""
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.array(value)
    return np.array(multihost_utils.process_allgather(value, tiled=True))


def _outputs(devices: Distribution | None, trained: Tensors, slots: Tensors) -> dict[str, Any]:
    """Keeps the sharding of the state from step to step, or each step would be compiled and copied again."""
    if devices is None:
        return {}
    places = [{name: value.sharding for name, value in state.items()} for state in (trained, slots)]
    return {"out_shardings": (*places, devices.replicated())}
