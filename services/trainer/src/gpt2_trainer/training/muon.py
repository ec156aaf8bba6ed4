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


def matrices_ahead(name: str, first: Any, gradient: Any, beta: float, number: Any, dtype: str) -> Any:
    """Nesterov's momentum as wide matrices of a norm of 1, which `orthogonalized` takes.

    Args:
        name: Name of the weight. Queries, keys and values are three matrices, which share a weight only for speed.
        first: Running mean of the gradients, this one included; float32 [inputs, outputs].
        gradient: As `first`.
        beta: The mean's decay.
        number: float32 scalar, updates with this one.
        dtype: Dtype of the products.

    Returns:
        `dtype` [matrices, rows, columns]; the transposes of matrices with more inputs than outputs, as the product of a
        matrix and its transpose is smaller where the matrix is wide.
    """
    ahead = beta * first / (1 - ops.power(beta, number + 1)) + (1 - beta) * gradient / (1 - ops.power(beta, number))
    inputs, outputs = (int(size) for size in first.shape)
    matrices = 3 if name.endswith("attn.c_attn.weight") and not name.startswith("lora_a/") else 1
    stacked = ops.reshape(ahead, (inputs, matrices, outputs // matrices))
    wide = ops.transpose(stacked, (1, 2, 0) if inputs > outputs // matrices else (1, 0, 2))
    norm = ops.sqrt(ops.sum(ops.square(wide), axis=(1, 2), keepdims=True))
    return ops.cast(wide / (norm + _EPSILON), dtype)


def orthogonalized(wide: Any) -> Any:
    """About U Vᵀ of the singular value decompositions U S Vᵀ, by Newton-Schulz: products of matrices alone.

    Args:
        wide: From `matrices_ahead`.

    Returns:
        As `wide`.
    """
    rows, columns = (int(size) for size in wide.shape[1:])
    # Errors of the squares grow over the iterations: float32 has room for that, bfloat16 has none.
    return _iterated_by_squares(wide) if columns >= 2 * rows and wide.dtype == "float32" else _iterated(wide)


def directions(wide: Any, inputs: int) -> Any:
    """The momentum with its singular values made about equal, float32 [matrices, inputs, outputs].

    Args:
        wide: From `orthogonalized`.
        inputs: Rows of the weight.
    """
    is_transposed = int(wide.shape[1]) != inputs
    return ops.cast(ops.transpose(wide, (0, 2, 1)) if is_transposed else wide, "float32")


def neuron_squares(second: Any, direction: Any, beta: float) -> Any:
    """The running mean square of each output's part of the directions, float32 [outputs of all matrices]."""
    return beta * second + (1 - beta) * ops.reshape(ops.mean(ops.square(direction), axis=1), second.shape)


def normalized(direction: Any, second: Any) -> Any:
    """The update at a learning rate of -1: each output divided by its root mean square, and the whole scaled.

    Args:
        direction: From `directions`.
        second: From `neuron_squares`, this direction included.

    Returns:
        float32 [inputs, outputs].
    """
    matrices, inputs, outputs = (int(size) for size in direction.shape)
    scaled = direction / (ops.sqrt(ops.reshape(second, (matrices, 1, outputs))) + _EPSILON)
    norm = ops.sqrt(ops.sum(ops.square(scaled), axis=(1, 2), keepdims=True))
    scaled = scaled * (_ROOT_MEAN_SQUARE * math.sqrt(inputs * outputs) / ops.maximum(norm, _EPSILON))
    return ops.reshape(ops.transpose(scaled, (1, 0, 2)), (inputs, matrices * outputs))


def _iterated(wide: Any) -> Any:
    """Newton-Schulz on wide matrices of a norm of at most 1."""
    first, third, fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = ops.matmul(wide, ops.transpose(wide, (0, 2, 1)))
        wide = first * wide + ops.matmul(third * square + fifth * ops.matmul(square, square), wide)
    return wide


def _iterated_by_squares(wide: Any) -> Any:
    """As `_iterated`, with about half of the operations where a matrix is four times as wide as high.

    An iteration multiplies by a polynomial of the square X Xᵀ. The square of the product follows from square and
    polynomial, so that the wide matrix itself is multiplied at the end alone.
    """
    first, third, fifth = _COEFFICIENTS
    square = ops.matmul(wide, ops.transpose(wide, (0, 2, 1)))
    identity = ops.eye(wide.shape[1], dtype=wide.dtype)
    factor = identity
    for iteration in range(_ITERATIONS):
        polynomial = first * identity + third * square + fifth * ops.matmul(square, square)
        factor = ops.matmul(polynomial, factor) if iteration else polynomial
        if iteration < _ITERATIONS - 1:
            square = ops.matmul(polynomial, ops.matmul(square, polynomial))
    return ops.matmul(factor, wide)
