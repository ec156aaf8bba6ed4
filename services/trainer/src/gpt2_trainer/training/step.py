"""One training step and one validation step: the part that is the same on every backend.

The backends differ in how they take a gradient and where they keep the state: see `stepper.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from keras import ops

from gpt2_trainer.configuration.training import TrainingOptions
from gpt2_trainer.model.adapters import adapter_names, is_adapter
from gpt2_trainer.model.dropout import Dropout, first_key, fold_in
from gpt2_trainer.model.network import Network
from gpt2_trainer.model.weights import Weights, has_vocabulary, is_layer_weight
from gpt2_trainer.training import guard, optimizer
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.schedule import learning_rate

Loss = Callable[[Tensors, Any, Any], Any]
ValueAndGradients = Callable[[Loss, Tensors, Any, Any], tuple[Any, Tensors]]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step says; the values may still be on their way from the device.

    `loss` is the mean cross-entropy in nats, `gradient_norm` the global norm before clipping; float32 scalars. `made`
    is a bool scalar: whether the update was made, rather than left out as harmful.
    """

    loss: Any
    gradient_norm: Any
    learning_rate: Any
    made: Any


@dataclass(frozen=True)
class TrainingStep:
    """The arithmetic of a step.

    Args:
        network: The model.
        options: Training options.
    """

    network: Network
    options: TrainingOptions

    def is_trained(self, name: str) -> bool:
        """Whether the training changes a weight."""
        if self.options.lora is not None:
            return is_adapter(name)
        return is_layer_weight(name) or not self.options.only_train_transformer_layers

    def first_slots(self, weights: Weights) -> Weights:
        """The optimizer's and the guard's state before the first update."""
        trained = {name: value for name, value in weights.items() if self.is_trained(name)}
        return optimizer.first_slots(self.options, trained) | guard.first_guard()

    def merged(self, weights: Tensors) -> Tensors:
        """The weights that the network computes with: where there are adapters, with their products added."""
        lora = self.options.lora
        if lora is None:
            return weights
        effective = {name: value for name, value in weights.items() if not is_adapter(name)}
        for name in effective:
            a, b = adapter_names(name)
            if a in weights:
                effective[name] = effective[name] + lora.scale * ops.matmul(weights[a], weights[b])
        return effective

    def losses(self, weights: Tensors, inputs: Any, targets: Any) -> Any:
        """Mean loss of each sequence; see Network.losses."""
        return self.network.losses(self.merged(weights), inputs, targets)

    def gradients(
        self, take_gradients: ValueAndGradients, weights: Tensors, step: Any, inputs: Any, targets: Any
    ) -> tuple[Any, Tensors]:
        """Mean loss of a batch, and its gradients by the name of each trained weight.

        Args:
            take_gradients: The backend's way to a loss and its gradients.
            weights: All weights by name.
            step: int32 scalar, updates made before; dropout masks depend on it.
            inputs: int32 [batch_size, context_length].
            targets: As inputs.
        """
        trained = {name: value for name, value in weights.items() if self.is_trained(name)}
        frozen = {name: value for name, value in weights.items() if not self.is_trained(name)}

        def loss_of(trained: Tensors, inputs: Any, targets: Any, *, dropout: Dropout | None) -> Any:
            return self.network.mean_loss(self.merged(trained | frozen), inputs, targets, dropout)

        return self._accumulated(take_gradients, loss_of, trained, step, inputs, targets)

    def update(
        self, weights: Tensors, slots: Tensors, step: Any, loss: Any, gradients: Tensors
    ) -> tuple[Tensors, Tensors, tuple[Any, Any, Any, Any]]:
        """Makes one update of gradients; one that would do harm changes nothing.

        Args:
            weights: All weights by name.
            slots: The optimizer's and the guard's state.
            step: int32 scalar, updates made before.
            loss: float32 scalar, mean loss of the batch.
            gradients: Gradients of the trained weights by name.

        Returns:
            New trained weights, new slots, and what a StepResult holds.
        """
        trained = {name: value for name, value in weights.items() if self.is_trained(name)}
        gradients, norm = optimizer.clip(gradients, self.options.clip_norm)
        rate = learning_rate(self.options, step)
        made = guard.is_harmless(self.options, slots, loss, norm)
        elements = {name: self._elements(name, value) for name, value in trained.items()}
        new_weights, new_slots = optimizer.update(self.options, rate, step, made, trained, slots, gradients, elements)
        following = guard.next_guard(slots, loss, norm)
        new_slots |= {name: ops.where(made, value, slots[name]) for name, value in following.items()}
        return new_weights, new_slots, (loss, norm, rate, made)

    def _elements(self, name: str, weight: Any) -> int:
        """Numbers in a weight that are no padding."""
        shape = tuple(weight.shape)
        return math.prod((self.network.architecture.vocabulary_size, *shape[1:]) if has_vocabulary(name) else shape)

    def _dropout(self, step: Any, part: Any) -> Dropout | None:
        """Dropout of one micro-batch of a step; None without, so that nothing of it is in the program."""
        rates = self.options.dropout_rates
        if not rates:
            return None
        return Dropout(rates=rates, key=fold_in(fold_in(first_key(self.options.seed), step), part))

    def _accumulated(
        self,
        take_gradients: ValueAndGradients,
        loss_of: Callable[..., Any],
        trained: Tensors,
        step: Any,
        inputs: Any,
        targets: Any,
    ) -> tuple[Any, Tensors]:
        """Mean loss and gradients over the micro-batches, one after the other, so that memory holds one at a time."""
        parts, size = self.options.accumulate_gradients, self.options.micro_batch_size
        if parts == 1:
            return take_gradients(partial(loss_of, dropout=self._dropout(step, 0)), trained, inputs, targets)
        shape = (parts, size, self.options.context_length)
        inputs, targets = ops.reshape(inputs, shape), ops.reshape(targets, shape)
        names = list(trained)

        def add(part: Any, sums: tuple[Any, ...]) -> tuple[Any, ...]:
            chosen = (ops.take(tensor, part, axis=0) for tensor in (inputs, targets))
            loss, gradients = take_gradients(partial(loss_of, dropout=self._dropout(step, part)), trained, *chosen)
            terms = (loss, *(gradients[name] for name in names))
            return tuple(total + term for total, term in zip(sums, terms, strict=True))

        zeros = (ops.zeros((), "float32"), *(ops.zeros_like(trained[name]) for name in names))
        loss, *gradients = ops.fori_loop(0, parts, add, zeros)
        return loss / parts, {name: total / parts for name, total in zip(names, gradients, strict=True)}
