"""Muon with NorMuon's normalisation, for the hidden matrices of a network: directions of updates and their slots.

Muon: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon); the corrections of the momentum are those of
`optax.contrib.muon`. NorMuon: Li et al. 2025 (arXiv 2510.05491). Its own module, as no other optimizer mixes elements.
"""

import math
from typing import Any

from keras import ops

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan's quintic, whose slope at 0 is the steepest: singular values end between about 0.7 and 1.2."""
_ITERATIONS = 5
_EPSILON = 1e-8
_ROOT_MEAN_SQUARE = 0.2
"""Of an update at a learning rate of 1, about that of AdamW's, so that both have the same learning rate (Liu et al.
2025, arXiv 2502.16982)."""


def momentum(first: Any, gradient: Any, beta: float) -> Any:
    """The running mean of the gradients after one more."""
    return beta * first + (1 - beta) * gradient


def orthogonal_direction(name: str, first: Any, gradient: Any, beta: float, number: Any, dtype: str) -> Any:
    """Nesterov's momentum with its singular values made about equal.

    Args:
        name: Name of the weight. Queries, keys and values are three matrices, which share a weight only for speed.
        first: Running mean of the gradients, this one included; float32 [inputs, outputs].
        gradient: As `first`.
        beta: The mean's decay.
        number: float32 scalar, updates with this one.
        dtype: Dtype of the products.

    Returns:
        float32 [matrices, inputs, outputs].
    """
    ahead = beta * first / (1 - ops.power(beta, number + 1)) + (1 - beta) * gradient / (1 - ops.power(beta, number))
    inputs, outputs = (int(size) for size in first.shape)
    matrices = 3 if name.endswith("attn.c_attn.weight") and not name.startswith("lora_a/") else 1
    stacked = ops.transpose(ops.reshape(ahead, (inputs, matrices, outputs // matrices)), (1, 0, 2))
    return _orthogonalized(stacked, dtype)


def neuron_squares(second: Any, direction: Any, beta: float) -> Any:
    """The running mean square of each output's part of the directions, float32 [outputs of all matrices]."""
    return beta * second + (1 - beta) * ops.reshape(ops.mean(ops.square(direction), axis=1), second.shape)


def normalized(direction: Any, second: Any) -> Any:
    """The update at a learning rate of -1: each output divided by its root mean square, and the whole scaled.

    Args:
        direction: From `orthogonal_direction`.
        second: From `neuron_squares`, this direction included.

    Returns:
        float32 [inputs, outputs].
    """
    matrices, inputs, outputs = (int(size) for size in direction.shape)
    scaled = direction / (ops.sqrt(ops.reshape(second, (matrices, 1, outputs))) + _EPSILON)
    norm = ops.sqrt(ops.sum(ops.square(scaled), axis=(1, 2), keepdims=True))
    scaled = scaled * (_ROOT_MEAN_SQUARE * math.sqrt(inputs * outputs) / ops.maximum(norm, _EPSILON))
    return ops.reshape(ops.transpose(scaled, (1, 0, 2)), (inputs, matrices * outputs))


def _orthogonalized(stacked: Any, dtype: str) -> Any:
    """About U Vᵀ of the singular value decompositions U S Vᵀ, by Newton-Schulz; [matrices, rows, columns]."""
    is_tall = stacked.shape[1] > stacked.shape[2]
    # The product of a matrix and its transpose is smaller where the matrix is wide.
    wide = ops.transpose(stacked, (0, 2, 1)) if is_tall else stacked
    norm = ops.sqrt(ops.sum(ops.square(wide), axis=(1, 2), keepdims=True))
    wide = ops.cast(wide / (norm + _EPSILON), dtype)
    first, third, fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = ops.matmul(wide, ops.transpose(wide, (0, 2, 1)))
        wide = first * wide + ops.matmul(third * square + fifth * ops.matmul(square, square), wide)
    wide = ops.cast(wide, "float32")
    return ops.transpose(wide, (0, 2, 1)) if is_tall else wide
