"""Training steps on TensorFlow: a gradient tape inside a compiled function, the state in variables."""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt2_trainer.kernels.selection import compiles_training
from gpt2_trainer.model.weights import Weights, averaged
from gpt2_trainer.training import muon
from gpt2_trainer.training.optimizer import Tensors
from gpt2_trainer.training.step import Loss, StepResult, TrainingStep


class TensorFlowStepExecutor:
    """A training's state in `tf.Variable`s, which XLA updates in place.

    Args:
        step: The arithmetic.
        weights: Weights by name, the vocabulary padded.
        slots: Optimizer slots by name.
    """

    def __init__(self, step: TrainingStep, weights: Weights, slots: Weights) -> None:
        compiled = compiles_training()
        self._step = step
        self._weights = {name: tf.Variable(value, trainable=False) for name, value in weights.items()}
        self._slots = {name: tf.Variable(value, trainable=False) for name, value in slots.items()}
        size, length = step.config.micro_batch_size, step.config.context_length
        batch = tf.TensorSpec((step.config.batch_size, length), tf.int32)
        micro_batch = tf.TensorSpec((size, length), tf.int32)
        number = tf.TensorSpec((), tf.int32)
        self._muon_matrices: Any = tf.function(self._prepare_matrices, jit_compile=True, autograph=False)
        self._apply: Any = tf.function(self._apply_gradients, jit_compile=True, autograph=False)
        self._train: Any = tf.function(self._update, [number, batch, batch], jit_compile=compiled, autograph=False)
        self._validate: Any = tf.function(
            self._losses, [micro_batch, micro_batch], jit_compile=compiled, autograph=False
        )

    def local_rows(self) -> None:
        """See StepExecutor."""
        return

    def train(self, step: int, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> StepResult:
        """See StepExecutor."""
        return StepResult(*self._train(tf.constant(step, tf.int32), inputs, targets))

    def validate(self, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float32]:
        """See StepExecutor."""
        return np.asarray(self._validate(inputs, targets), np.float32)

    def weights(self) -> Weights:
        """See StepExecutor."""
        return {name: variable.numpy() for name, variable in self._weights.items()}

    def slots(self) -> Weights:
        """See StepExecutor."""
        return {name: np.asarray(variable.numpy()) for name, variable in self._slots.items()}

    def tensors(self) -> Tensors:
        """See StepExecutor."""
        return {name: variable.value() for name, variable in self._weights.items()}

    def evaluated(self) -> Tensors:
        """See StepExecutor."""
        return {name: variable.value() for name, variable in averaged(self._weights, self._slots).items()}

    def _update(self, step: Any, inputs: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
        loss, gradients = self._step.gradients(_take_gradients, self.tensors(), step, inputs, targets)
        # On CPUs outside of XLA, whose products are slower (`tensorflow_cpu.py`), of bfloat16 three times and more.
        matrices = self._muon_matrices(step, loss, gradients) if self._step.config.optimizer == "muon" else {}
        orthogonalized = {name: muon.orthogonalized(wide) for name, wide in matrices.items()}
        result: tuple[Any, Any, Any, Any] = self._apply(step, loss, gradients, orthogonalized)
        return result

    def _prepare_matrices(self, step: Any, loss: Any, gradients: Tensors) -> Tensors:
        return self._step.muon_matrices(self._slot_values(), step, loss, gradients)

    def _apply_gradients(
        self, step: Any, loss: Any, gradients: Tensors, orthogonalized: Tensors
    ) -> tuple[Any, Any, Any, Any]:
        slots = self._slot_values()
        weights, slots, result = self._step.update(self.tensors(), slots, step, loss, gradients, orthogonalized)
        for name, value in weights.items():
            self._weights[name].assign(value)
        for name, value in slots.items():
            self._slots[name].assign(value)
        return result

    def _slot_values(self) -> Tensors:
        return {name: variable.value() for name, variable in self._slots.items()}

    def _losses(self, inputs: Any, targets: Any) -> Any:
        return self._step.losses(self.evaluated(), inputs, targets)


def _take_gradients(loss_of: Loss, weights: Tensors, inputs: Any, targets: Any) -> tuple[Any, Tensors]:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(weights)
        loss = loss_of(weights, inputs, targets)
    # The embedding's gradient is IndexedSlices, in which a repeated token has several rows: they are summed, or its
    # norm would be wrong.
    return loss, {name: tf.convert_to_tensor(gradient) for name, gradient in tape.gradient(loss, weights).items()}
