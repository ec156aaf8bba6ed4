"""AdamW, Adam, SGD and Adafactor as pure functions of weights, slots and gradients; clipping by the global norm.

Betas by default: 0.9 and 0.95 with AdamW, as GPT-3's paper and today's GPT-2 trainings have them; 0.9 and 0.999 with
Adam, as its paper and the older GPT-2 fine-tuning tools.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from gpt2_trainer.configuration.training import TrainingOptions
from gpt2_trainer.model.backend import row_sums
from gpt2_trainer.model.weights import COLUMNS, Weights, is_decayed

Tensors = dict[str, Any]

# Adafactor's constants, from its paper: regularization of squares, of updates, and the exponent of the decay.
_LEAST_SQUARE = 1e-30
_GREATEST_UPDATE = 1.0
_DECAY_EXPONENT = -0.8
_DECAYING = ("adamw", "adafactor")
_ROWS = "second_moment_rows"
_COLUMNS = f"second_moment{COLUMNS}"


def first_slots(options: TrainingOptions, weights: Weights) -> Weights:
    """What the optimizer keeps for each trained weight, by `<slot>/<weight>`: zeros at first."""
    slots: Weights = {}
    for name, value in weights.items():
        for slot, shape in _slot_shapes(options, value.shape).items():
            slots[f"{slot}/{name}"] = np.zeros(shape, np.float32)
    return slots


def _slot_shapes(options: TrainingOptions, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    if options.optimizer in ("adamw", "adam"):
        return {"first_moment": shape, "second_moment": shape}
    if options.optimizer == "sgd":
        return {"momentum": shape} if options.momentum else {}
    if len(shape) == 2:
        return {_ROWS: shape[:1], _COLUMNS: shape[1:]}
    return {"second_moment": shape}


def clip(gradients: Tensors, greatest: float) -> tuple[Tensors, Any]:
    """Scales gradients down to a greatest global norm; 0: none. Returns them and the norm before."""
    norm = ops.sqrt(sum(ops.sum(row_sums(ops.square(gradient))) for gradient in gradients.values()))
    if not greatest:
        return gradients, norm
    scale = greatest / ops.maximum(norm, greatest)
    return {name: gradient * scale for name, gradient in gradients.items()}, norm


def update(
    options: TrainingOptions,
    rate: Any,
    step: Any,
    made: Any,
    weights: Tensors,
    slots: Tensors,
    gradients: Tensors,
    elements: Mapping[str, int],
) -> tuple[Tensors, Tensors]:
    """Makes one update, or none.

    Args:
        options: Training options.
        rate: float32 scalar, learning rate.
        step: int32 scalar, updates made before.
        made: bool scalar, whether it is made; if not, all stays as it was, whatever is in the gradients.
        weights: Trained weights by name.
        slots: Slots by `<slot name>/<weight name>`.
        gradients: Gradients by weight name.
        elements: Numbers in a weight that are no padding, by name.

    Returns:
        New weights and new slots.
    """
    number = ops.cast(step, "float32") + 1.0
    new_weights: Tensors = {}
    new_slots: Tensors = {}
    for name, gradient in gradients.items():
        moments = {
            slot: ops.where(made, moment, slots[slot])
            for slot, moment in _next_moments(options, slots, name, gradient, number).items()
        }
        # Of those that are kept: to make others XLA would read the old ones again, and so copy them before they change.
        direction = _direction(options, moments, name, gradient, number, elements[name])
        decay = options.weight_decay if options.optimizer in _DECAYING and is_decayed(name) else 0.0
        kept = weights[name] * (1 - rate * decay) if decay else weights[name]
        new_weights[name] = ops.where(made, kept - rate * direction, weights[name])
        new_slots |= moments
    return new_weights, new_slots


def _next_moments(options: TrainingOptions, slots: Tensors, name: str, gradient: Any, number: Any) -> Tensors:
    """The slots of a weight after an update, by `<slot name>/<weight name>`."""
    if options.optimizer == "adafactor":
        return _adafactor_moments(slots, name, gradient, number)
    if options.optimizer == "sgd":
        return {f"momentum/{name}": options.momentum * slots[f"momentum/{name}"] + gradient} if options.momentum else {}
    first = options.beta1 * slots[f"first_moment/{name}"] + (1 - options.beta1) * gradient
    second = options.beta2 * slots[f"second_moment/{name}"] + (1 - options.beta2) * ops.square(gradient)
    return {f"first_moment/{name}": first, f"second_moment/{name}": second}


def _direction(options: TrainingOptions, moments: Tensors, name: str, gradient: Any, number: Any, elements: int) -> Any:
    """What a weight moves against, at a rate of 1, given its new slots."""
    if options.optimizer == "adafactor":
        return _adafactor_direction(moments, name, gradient, elements)
    if options.optimizer == "sgd":
        return moments[f"momentum/{name}"] if options.momentum else gradient
    # Kingma and Ba, algorithm 1.
    mean = moments[f"first_moment/{name}"] / (1 - ops.power(options.beta1, number))
    square = moments[f"second_moment/{name}"] / (1 - ops.power(options.beta2, number))
    return mean / (ops.sqrt(square) + options.epsilon)


def _adafactor_moments(slots: Tensors, name: str, gradient: Any, number: Any) -> Tensors:
    """Shazeer and Stern, algorithms 4 and 5, at the learning rate of the schedule.

    The squares' running mean of a matrix is kept as means of its rows and of its columns. Rows of padding scale the
    means of columns and the mean of rows alike, and so change nothing.
    """
    beta = 1.0 - ops.power(number, _DECAY_EXPONENT)
    square = ops.square(gradient) + _LEAST_SQUARE
    if len(gradient.shape) == 2:
        rows = beta * slots[f"{_ROWS}/{name}"] + (1 - beta) * ops.mean(square, axis=1)
        columns = beta * slots[f"{_COLUMNS}/{name}"] + (1 - beta) * ops.mean(square, axis=0)
        return {f"{_ROWS}/{name}": rows, f"{_COLUMNS}/{name}": columns}
    return {f"second_moment/{name}": beta * slots[f"second_moment/{name}"] + (1 - beta) * square}


def _adafactor_direction(moments: Tensors, name: str, gradient: Any, elements: int) -> Any:
    if len(gradient.shape) == 2:
        rows, columns = moments[f"{_ROWS}/{name}"], moments[f"{_COLUMNS}/{name}"]
        direction = gradient * ops.rsqrt(rows / ops.mean(rows))[:, None] * ops.rsqrt(columns)[None, :]
    else:
        direction = gradient * ops.rsqrt(moments[f"second_moment/{name}"])
    size = ops.sqrt(ops.sum(ops.square(direction)) / elements)
    return direction / ops.maximum(1.0, size / _GREATEST_UPDATE)
