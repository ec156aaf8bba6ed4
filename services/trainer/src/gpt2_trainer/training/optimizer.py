"""AdamW, Adam and SGD as pure functions of weights, slots and gradients, with clipping by the global norm.

Betas: 0.9 and 0.95 with AdamW, as GPT-3's paper and today's GPT-2 trainings have them; 0.9 and 0.999 with Adam, as its
paper and the older GPT-2 fine-tuning tools. SGD has no momentum.
"""

from collections.abc import Mapping
from typing import Any

from keras import ops

from gpt2_trainer.configuration.training import OptimizerName, TrainingOptions
from gpt2_trainer.model.weights import is_decayed

Tensors = dict[str, Any]

EPSILON = 1e-8
_BETAS: Mapping[OptimizerName, tuple[float, float]] = {"adamw": (0.9, 0.95), "adam": (0.9, 0.999)}


def slot_names(options: TrainingOptions) -> tuple[str, ...]:
    """Names of the tensors that the optimizer keeps for each trained weight; they begin at 0."""
    return ("first_moment", "second_moment") if options.optimizer in _BETAS else ()


def clip(gradients: Tensors, greatest: float) -> tuple[Tensors, Any]:
    """Scales gradients down to a greatest global norm; 0: none. Returns them and the norm before."""
    norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients.values()))
    if not greatest:
        return gradients, norm
    scale = greatest / ops.maximum(norm, greatest)
    return {name: gradient * scale for name, gradient in gradients.items()}, norm


def update(
    options: TrainingOptions, rate: Any, step: Any, weights: Tensors, slots: Tensors, gradients: Tensors
) -> tuple[Tensors, Tensors]:
    """Makes one update.

    Args:
        options: Training options.
        rate: float32 scalar, learning rate.
        step: int32 scalar, updates made before.
        weights: Trained weights by name.
        slots: Slots by `<slot name>/<weight name>`.
        gradients: Gradients by weight name.

    Returns:
        New weights and new slots.
    """
    if options.optimizer == "sgd":
        return {name: weights[name] - rate * gradient for name, gradient in gradients.items()}, {}
    first_beta, second_beta = _BETAS[options.optimizer]
    number = ops.cast(step, "float32") + 1.0
    first_correction = 1 - ops.power(first_beta, number)
    second_correction = 1 - ops.power(second_beta, number)
    decay = options.weight_decay if options.optimizer == "adamw" else 0.0
    new_weights: Tensors = {}
    new_slots: Tensors = {}
    for name, gradient in gradients.items():
        first = first_beta * slots[f"first_moment/{name}"] + (1 - first_beta) * gradient
        second = second_beta * slots[f"second_moment/{name}"] + (1 - second_beta) * ops.square(gradient)
        direction = (first / first_correction) / (ops.sqrt(second / second_correction) + EPSILON)
        kept = weights[name] * (1 - rate * decay) if decay and is_decayed(name) else weights[name]
        new_weights[name] = kept - rate * direction
        new_slots[f"first_moment/{name}"] = first
        new_slots[f"second_moment/{name}"] = second
    return new_weights, new_slots
