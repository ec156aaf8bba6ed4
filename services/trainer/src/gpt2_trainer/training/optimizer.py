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
    weights: Tensors,
    slots: Tensors,
    gradients: Tensors,
    elements: Mapping[str, int],
) -> tuple[Tensors, Tensors]:
    """Makes one update.

    Args:
        options: Training options.
        rate: float32 scalar, learning rate.
        step: int32 scalar, updates made before.
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
        if options.optimizer == "sgd":
            direction, changed = _momentum(options, slots, name, gradient)
        elif options.optimizer == "adafactor":
            direction, changed = _adafactor(slots, name, gradient, number, elements[name])
        else:
            direction, changed = _adam(options, slots, name, gradient, number)
        decay = options.weight_decay if options.optimizer in _DECAYING and is_decayed(name) else 0.0
        kept = weights[name] * (1 - rate * decay) if decay else weights[name]
        new_weights[name] = kept - rate * direction
        new_slots |= changed
    return new_weights, new_slots


def _momentum(options: TrainingOptions, slots: Tensors, name: str, gradient: Any) -> tuple[Any, Tensors]:
    if not options.momentum:
        return gradient, {}
    direction = options.momentum * slots[f"momentum/{name}"] + gradient
    return direction, {f"momentum/{name}": direction}


def _adam(options: TrainingOptions, slots: Tensors, name: str, gradient: Any, number: Any) -> tuple[Any, Tensors]:
    """Kingma and Ba, algorithm 1."""
    first = options.beta1 * slots[f"first_moment/{name}"] + (1 - options.beta1) * gradient
    second = options.beta2 * slots[f"second_moment/{name}"] + (1 - options.beta2) * ops.square(gradient)
    mean, square = first / (1 - ops.power(options.beta1, number)), second / (1 - ops.power(options.beta2, number))
    direction = mean / (ops.sqrt(square) + options.epsilon)
    return direction, {f"first_moment/{name}": first, f"second_moment/{name}": second}


def _adafactor(slots: Tensors, name: str, gradient: Any, number: Any, elements: int) -> tuple[Any, Tensors]:
    """Shazeer and Stern, algorithms 4 and 5, at the learning rate of the schedule.

    The squares' running mean of a matrix is kept as means of its rows and of its columns. Rows of padding scale the
    means of columns and the mean of rows alike, and so change nothing.
    """
    beta = 1.0 - ops.power(number, _DECAY_EXPONENT)
    square = ops.square(gradient) + _LEAST_SQUARE
    if len(gradient.shape) == 2:
        rows = beta * slots[f"{_ROWS}/{name}"] + (1 - beta) * ops.mean(square, axis=1)
        columns = beta * slots[f"{_COLUMNS}/{name}"] + (1 - beta) * ops.mean(square, axis=0)
        changed = {f"{_ROWS}/{name}": rows, f"{_COLUMNS}/{name}": columns}
        direction = gradient * ops.rsqrt(rows / ops.mean(rows))[:, None] * ops.rsqrt(columns)[None, :]
    else:
        second = beta * slots[f"second_moment/{name}"] + (1 - beta) * square
        changed = {f"second_moment/{name}": second}
        direction = gradient * ops.rsqrt(second)
    size = ops.sqrt(ops.sum(ops.square(direction)) / elements)
    return direction / ops.maximum(1.0, size / _GREATEST_UPDATE), changed
