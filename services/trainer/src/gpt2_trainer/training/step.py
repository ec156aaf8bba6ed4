"""One training step and one validation step: the part that is the same on every backend.

The backends differ in how they compute gradients and where they keep the state: see `executor.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from keras import ops

from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.model.dropout import Dropout, first_key, fold_in
from gpt2_trainer.model.gpt2 import GPT2
from gpt2_trainer.model.lora import adapter_names, is_adapter
from gpt2_trainer.model.weights import Weights, average_name, has_vocabulary, is_layer_weight
from gpt2_trainer.training import freezing, optimizer, spike_detection
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.schedule import learning_rate

Loss = Callable[[Tensors, Any, Any], Any]
ValueAndGradients = Callable[[Loss, Tensors, Any, Any], tuple[Any, Tensors]]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step; on the device, where the step may still be running, or fetched as Python numbers.

    `loss` is the mean cross-entropy in nats, `gradient_norm` the global norm before clipping; float32 scalars.
    `applied` is a bool scalar: whether the update was applied rather than skipped.
    """

    loss: Any
    gradient_norm: Any
    learning_rate: Any
    applied: Any


@dataclass(frozen=True)
class TrainingStep:
    """The arithmetic of a step.

    Args:
        model: The model.
        config: The training's configuration.
    """

    model: GPT2
    config: ResolvedTrainingConfig

    def is_trained(self, name: str) -> bool:
        """Whether the training changes a weight."""
        if self.config.lora is not None:
            return is_adapter(name)
        return is_layer_weight(name) or not self.config.only_train_transformer_layers

    def first_slots(self, weights: Weights) -> Weights:
        """Slots of the optimizer, of averages and of spike detection before the first update."""
        trained = {name: value for name, value in weights.items() if self.is_trained(name)}
        averages = {average_name(name): value for name, value in trained.items()} if self.config.ema_decay else {}
        return optimizer.first_slots(self.config, trained) | averages | spike_detection.initial_statistics()

    def merged(self, weights: Tensors) -> Tensors:
        """The weights of the network: with LoRA, W + scale A B (Hu et al. 2021)."""
        lora = self.config.lora
        if lora is None:
            return weights
        effective = {name: value for name, value in weights.items() if not is_adapter(name)}
        for name in effective:
            a, b = adapter_names(name)
            if a in weights:
                effective[name] = effective[name] + lora.scale * ops.matmul(weights[a], weights[b])
        return effective

    def losses(self, weights: Tensors, inputs: Any, targets: Any) -> Any:
        """Mean loss of each sequence; see GPT2.losses."""
        return self.model.losses(self.merged(weights), inputs, targets)

    def gradients(
        self, take_gradients: ValueAndGradients, weights: Tensors, step: Any, inputs: Any, targets: Any
    ) -> tuple[Any, Tensors]:
        """Mean loss of a batch, and its gradients by the name of each trained weight.

        Args:
            take_gradients: The backend's function that computes a loss and its gradients.
            weights: All weights by name.
            step: int32 scalar, earlier updates; dropout masks depend on it.
            inputs: int32 [batch_size, context_length].
            targets: As inputs.
        """
        trained = {name: value for name, value in weights.items() if self.is_trained(name)}
        frozen = {name: value for name, value in weights.items() if not self.is_trained(name)}

        def loss_of(trained: Tensors, inputs: Any, targets: Any, *, dropout: Dropout | None) -> Any:
            return self.model.mean_loss(self.merged(trained | frozen), inputs, targets, dropout)

        return self._accumulated(take_gradients, loss_of, trained, step, inputs, targets)

    def muon_matrices(self, slots: Tensors, step: Any, loss: Any, gradients: Tensors) -> Tensors:
        """See `optimizer.muon_matrices`; arguments as of `update`."""
        gradients, _, judged = self._clipped(step, gradients)
        applied = spike_detection.should_apply(self.config, slots, loss, judged)
        return optimizer.muon_matrices(self.config, step, applied, slots, gradients)

    def update(
        self,
        weights: Tensors,
        slots: Tensors,
        step: Any,
        loss: Any,
        gradients: Tensors,
        orthogonalized: Tensors | None = None,
    ) -> tuple[Tensors, Tensors, tuple[Any, Any, Any, Any]]:
        """Applies one update; a skipped one changes nothing.

        Args:
            weights: All weights by name.
            slots: Slots of the optimizer and of spike detection.
            step: int32 scalar, earlier updates.
            loss: float32 scalar, mean loss of the batch.
            gradients: Gradients of the trained weights by name.
            orthogonalized: See `optimizer.update`.

        Returns:
            New trained weights, new slots, and the fields of a StepResult.
        """
        trained = {name: value for name, value in weights.items() if self.is_trained(name)}
        gradients, norm, judged = self._clipped(step, gradients)
        rate = learning_rate(self.config, step)
        applied = spike_detection.should_apply(self.config, slots, loss, judged)
        elements = {name: self._elements(name, value) for name, value in trained.items()}
        new_weights, new_slots = optimizer.update(
            self.config, rate, step, applied, trained, slots, gradients, elements, orthogonalized
        )
        statistics = spike_detection.updated_statistics(slots, loss, judged)
        new_slots |= {name: ops.where(applied, value, slots[name]) for name, value in statistics.items()}
        if self.config.ema_decay:
            new_slots |= self._averages(slots, step, applied, new_weights)
        return new_weights, new_slots, (loss, norm, rate, applied)

    def _clipped(self, step: Any, gradients: Tensors) -> tuple[Tensors, Any, Any]:
        """Clipped gradients, 0 for frozen weights; their norm before, and the norm that spikes are judged by.

        That one is of all weights, so that it does not jump when frozen ones follow.
        """
        whole_norm = None
        if self.config.embeddings_only_steps:
            whole_norm = optimizer.global_norm(gradients)
            gradients = freezing.masked(self.config, step, gradients)
        gradients, norm = optimizer.clip(gradients, self.config.clip_norm)
        return gradients, norm, norm if whole_norm is None else whole_norm

    def _averages(self, slots: Tensors, step: Any, applied: Any, weights: Tensors) -> Tensors:
        """Averages after an update; those of weights that it does not change stay as they are.

        The decay rises to that of the configuration as in TensorFlow's ExponentialMovingAverage, or the initial weights
        would count for long.
        """
        number = ops.cast(step, "float32") + 1.0
        decay = ops.minimum(self.config.ema_decay, (1.0 + number) / (10.0 + number))
        averages: Tensors = {}
        for name, value in weights.items():
            average = average_name(name)
            late = freezing.is_late(self.config, name)
            changed = freezing.applies_late(self.config, step, applied) if late else applied
            averages[average] = ops.where(changed, decay * slots[average] + (1 - decay) * value, slots[average])
        return averages

    def _elements(self, name: str, weight: Any) -> int:
        """Elements of a weight without padding of the vocabulary."""
        shape = tuple(weight.shape)
        return math.prod((self.model.architecture.vocabulary_size, *shape[1:]) if has_vocabulary(name) else shape)

    def _dropout(self, step: Any, part: Any) -> Dropout | None:
        """Dropout of one micro-batch of a step; None at rates of 0, so that the program has no such operations."""
        rates = self.config.dropout_rates
        if not rates:
            return None
        return Dropout(rates=rates, key=fold_in(fold_in(first_key(self.config.seed), step), part))

    def _accumulated(
        self,
        take_gradients: ValueAndGradients,
        loss_of: Callable[..., Any],
        trained: Tensors,
        step: Any,
        inputs: Any,
        targets: Any,
    ) -> tuple[Any, Tensors]:
        """Mean loss and gradients over the micro-batches, one at a time to save memory."""
        parts, size = self.config.gradient_accumulation_steps, self.config.micro_batch_size
        if parts == 1:
            return take_gradients(partial(loss_of, dropout=self._dropout(step, 0)), trained, inputs, targets)
        shape = (parts, size, self.config.context_length)
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
