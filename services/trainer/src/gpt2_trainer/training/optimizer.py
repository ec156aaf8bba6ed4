"""AdamW, Adam, SGD, Adafactor and Muon as pure functions of weights, slots and gradients; clipping by the global norm.

AdamW: Loshchilov and Hutter (2019). Adam: Kingma and Ba (2015). Adafactor: Shazeer and Stern (2018).
Muon, for hidden matrices, is in `muon.py`; AdamW trains the other weights then.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from gpt2_trainer.configuration.training import OPTIMIZERS_WITH_WEIGHT_DECAY, ResolvedTrainingConfig
from gpt2_trainer.kernels.primitives import row_sums
from gpt2_trainer.model.lora import is_hidden_matrix
from gpt2_trainer.model.weights import COLUMNS, Weights, is_decayed
from gpt2_trainer.training import freezing, muon
from gpt2_trainer.training.schedule import weight_decay

Tensors = dict[str, Any]

# Adafactor's constants, from its paper: regularization of squares, of updates, and the exponent of the decay.
_MIN_SQUARE = 1e-30
_MAX_UPDATE = 1.0
_DECAY_EXPONENT = -0.8
_ROWS = "second_moment_rows"
_COLUMNS = f"second_moment{COLUMNS}"


def first_slots(config: ResolvedTrainingConfig, weights: Weights) -> Weights:
    """Zero slots of the optimizer for each trained weight, by `<slot>/<weight>`."""
    slots: Weights = {}
    for name, value in weights.items():
        for slot, shape in _slot_shapes(config, name, value.shape).items():
            slots[f"{slot}/{name}"] = np.zeros(shape, np.float32)
    return slots


def _slot_shapes(config: ResolvedTrainingConfig, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    if _is_muon(config, name):
        return {"first_moment": shape, _COLUMNS: shape[1:]}
    if config.optimizer in ("adamw", "adam", "muon"):
        return {"first_moment": shape, "second_moment": shape}
    if config.optimizer == "sgd":
        return {"momentum": shape} if config.momentum else {}
    if len(shape) == 2:
        return {_ROWS: shape[:1], _COLUMNS: shape[1:]}
    return {"second_moment": shape}


def global_norm(gradients: Tensors) -> Any:
    """The norm of all gradients as one vector, float32 scalar."""
    return ops.sqrt(sum(ops.sum(row_sums(ops.square(gradient))) for gradient in gradients.values()))


def clip(gradients: Tensors, max_norm: float | None) -> tuple[Tensors, Any]:
    """Scales gradients down to a maximum global norm; None: no limit. Returns them and the norm before."""
    norm = global_norm(gradients)
    if max_norm is None:
        return gradients, norm
    scale = max_norm / ops.maximum(norm, max_norm)
    return {name: gradient * scale for name, gradient in gradients.items()}, norm


def update(
    config: ResolvedTrainingConfig,
    rate: Any,
    step: Any,
    applied: Any,
    weights: Tensors,
    slots: Tensors,
    gradients: Tensors,
    elements: Mapping[str, int],
    orthogonalized: Tensors | None = None,
) -> tuple[Tensors, Tensors]:
    """Applies one update, or skips it.

    Args:
        config: The training's configuration.
        rate: float32 scalar, learning rate.
        step: int32 scalar, earlier updates.
        applied: bool scalar; if false, weights and slots stay as they are, also where gradients are NaN.
        weights: Trained weights by name.
        slots: Slots by `<slot name>/<weight name>`.
        gradients: Gradients by weight name.
        elements: Elements of a weight without padding of the vocabulary, by name.
        orthogonalized: What `muon.orthogonalized` makes of `muon_matrices`; None: it is computed here.

    Returns:
        New weights and new slots.
    """
    if orthogonalized is None:
        matrices = muon_matrices(config, step, applied, slots, gradients)
        orthogonalized = {name: muon.orthogonalized(wide) for name, wide in matrices.items()}
    has_decay = config.weight_decay and config.optimizer in OPTIMIZERS_WITH_WEIGHT_DECAY
    decay = weight_decay(config, step)
    new_weights: Tensors = {}
    new_slots: Tensors = {}
    for name, gradient in gradients.items():
        number, changed = _updates_of(config, name, step, applied)
        if _is_muon(config, name):
            moments, direction = _muon(config, slots, name, gradient, changed, orthogonalized[name])
        else:
            moments = {
                slot: ops.where(changed, moment, slots[slot])
                for slot, moment in _next_moments(config, slots, name, gradient, number).items()
            }
            # From the slots that are kept: for others XLA would read the old slots again, and so copy them first.
            direction = _direction(config, moments, name, gradient, number, elements[name])
        decays = has_decay and is_decayed(name)
        kept = _decayed(config, weights[name], rate * decay, direction) if decays else weights[name]
        new_weights[name] = ops.where(changed, kept - rate * direction, weights[name])
        new_slots |= moments
    return new_weights, new_slots


def muon_matrices(
    config: ResolvedTrainingConfig, step: Any, applied: Any, slots: Tensors, gradients: Tensors
) -> Tensors:
    """What `muon.orthogonalized` takes of each hidden matrix, by its name; nothing with another optimizer.

    It stands apart from `update` as it is all that lies before products of matrices, which are fast elsewhere.

    Args:
        config: See `update`, as all others.
        step: See there.
        applied: See there.
        slots: See there.
        gradients: See there.
    """
    matrices: Tensors = {}
    for name, gradient in gradients.items():
        if _is_muon(config, name):
            number, changed = _updates_of(config, name, step, applied)
            first = _muon_moment(config, slots, name, gradient, changed)
            matrices[name] = muon.matrices_ahead(name, first, gradient, config.momentum, number, config.precision)
    return matrices


def _updates_of(config: ResolvedTrainingConfig, name: str, step: Any, applied: Any) -> tuple[Any, Any]:
    """A weight's updates with this one, by which moments that start at 0 are corrected, and whether this one is made.

    float32 and bool scalars.
    """
    number = ops.cast(step, "float32") + 1.0
    if not freezing.is_late(config, name):
        return number, applied
    late = ops.maximum(number - config.embeddings_only_steps, 1.0)
    return late, freezing.applies_late(config, step, applied)


def _is_muon(config: ResolvedTrainingConfig, name: str) -> bool:
    return config.optimizer == "muon" and is_hidden_matrix(name)


def _muon_moment(config: ResolvedTrainingConfig, slots: Tensors, name: str, gradient: Any, changed: Any) -> Any:
    first = slots[f"first_moment/{name}"]
    return ops.where(changed, muon.momentum(first, gradient, config.momentum), first)


def _muon(
    config: ResolvedTrainingConfig, slots: Tensors, name: str, gradient: Any, changed: Any, orthogonalized: Any
) -> tuple[Tensors, Any]:
    """New slots of a hidden matrix, and its update at a learning rate of -1; from slots that are kept, as above."""
    second = slots[f"{_COLUMNS}/{name}"]
    direction = muon.directions(orthogonalized, int(gradient.shape[0]))
    second = ops.where(changed, muon.neuron_squares(second, direction, config.beta2), second)
    first = _muon_moment(config, slots, name, gradient, changed)
    return {f"first_moment/{name}": first, f"{_COLUMNS}/{name}": second}, muon.normalized(direction, second)


def _decayed(config: ResolvedTrainingConfig, weight: Any, decay: Any, direction: Any) -> Any:
    """A weight after its decay.

    With Muon the decay is cautious (Chen et al. 2025, arXiv 2510.12402): it applies to the elements alone that the
    update brings nearer to 0 too.
    """
    if config.optimizer != "muon":
        return weight * (1 - decay)
    return weight - decay * ops.where(direction * weight >= 0, weight, 0.0)


def _next_moments(config: ResolvedTrainingConfig, slots: Tensors, name: str, gradient: Any, number: Any) -> Tensors:
    """Slots of a weight after an update, by `<slot name>/<weight name>`."""
    if config.optimizer == "adafactor":
        return _adafactor_moments(slots, name, gradient, number)
    if config.optimizer == "sgd":
        return {f"momentum/{name}": config.momentum * slots[f"momentum/{name}"] + gradient} if config.momentum else {}
    first = config.beta1 * slots[f"first_moment/{name}"] + (1 - config.beta1) * gradient
    second = config.beta2 * slots[f"second_moment/{name}"] + (1 - config.beta2) * ops.square(gradient)
    return {f"first_moment/{name}": first, f"second_moment/{name}": second}


def _direction(
    config: ResolvedTrainingConfig, moments: Tensors, name: str, gradient: Any, number: Any, elements: int
) -> Any:
    """The update of a weight at a learning rate of -1, given its new slots."""
    if config.optimizer == "adafactor":
        return _adafactor_direction(moments, name, gradient, elements)
    if config.optimizer == "sgd":
        return moments[f"momentum/{name}"] if config.momentum else gradient
    # Kingma and Ba, algorithm 1.
    mean = moments[f"first_moment/{name}"] / (1 - ops.power(config.beta1, number))
    square = moments[f"second_moment/{name}"] / (1 - ops.power(config.beta2, number))
    return mean / (ops.sqrt(square) + config.epsilon)


def _adafactor_moments(slots: Tensors, name: str, gradient: Any, number: Any) -> Tensors:
    """Shazeer and Stern, algorithms 4 and 5, at the learning rate of the schedule.

    The squares' running mean of a matrix is kept as means of its rows and of its columns. Rows of padding scale the
    means of columns and the mean of rows alike, and so change nothing.
    """
    beta = 1.0 - ops.power(number, _DECAY_EXPONENT)
    square = ops.square(gradient) + _MIN_SQUARE
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
    return direction / ops.maximum(1.0, size / _MAX_UPDATE)
