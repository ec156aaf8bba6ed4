"""Products of one row with matrices of bfloat16 on a CPU, at the speed at which memory gives the numbers.

With one row, each number of a matrix is read for a single multiplication: half the bytes take half the time. XLA has no
such product for CPUs, as it makes the whole matrix float32 first. So a loop over the matrix is written here that it
compiles to one pass, with vectors and on all cores.

A number of bfloat16 is the upper half of one of float32. Two are kept in 32 bits: the upper one is had by masking the
lower out, and the lower one by a multiplication with 2**16. (XLA would check each shift for being too wide.)
"""

import math
from typing import Any, NamedTuple

import numpy as np
from keras import config, ops
from numpy.typing import NDArray

from gpt2_trainer.model import backend

_LINES = 8
# Numbers of one pass: fewer are not worth the waking of a second core.
_PASS = 12_288
# Numbers of a line of the CPU's cache: rows that do not begin at one take three times as long.
_CACHE_LINE = 16


class PairedMatrix(NamedTuple):
    """A matrix of bfloat16 in two forms; a tree of tensors, as compiled functions take them."""

    full: Any
    """float32 [rows, columns], of numbers that bfloat16 has: for several rows of inputs."""
    pairs: Any
    """uint32 [steps, 8, groups, columns], see `pair`: for one row; of the transpose, where that is multiplied by."""


def is_fast() -> bool:
    """Whether the backend makes one pass of `multiply`'s loop: JAX on a CPU."""
    if config.backend() != "jax":
        return False
    import jax  # heavy, and wanted with this backend alone

    return bool(jax.default_backend() == "cpu")


def pair(matrix: Any) -> NDArray[np.uint32] | None:
    """Puts each two rows that follow one another into one.

    Args:
        matrix: bfloat16 [rows, columns].

    Returns:
        [steps, 8, groups, columns]: row `2 * n` of the matrix is in the lower halves of row n, as numbered by the first
        three axes, and row `2 * n + 1` in the upper ones; zeros follow, up to a multiple of 16 columns. None when the
        rows do not divide so.
    """
    blocks, rest = divmod(matrix.shape[0], 2 * _LINES)
    # A single step would be no loop.
    divisors = [groups for groups in range(1, blocks // 2 + 1) if blocks % groups == 0]
    if rest or not divisors:
        return None
    groups = min(divisors, key=lambda groups: abs(groups * matrix.shape[1] - _PASS))
    bits = ops.convert_to_numpy(matrix).view(np.uint16).astype(np.uint32)
    pairs = np.pad(bits[0::2] | bits[1::2] << 16, ((0, 0), (0, -matrix.shape[1] % _CACHE_LINE)))
    return pairs.reshape(-1, _LINES, groups, pairs.shape[1])


def product(inputs: Any, matrix: PairedMatrix, *, transposed: bool = False) -> Any:
    """Product of inputs and a matrix.

    Args:
        inputs: float32 [..., rows].
        matrix: The matrix; its pairs are of what is multiplied by.
        transposed: Whether that is the transpose of its full form.

    Returns:
        float32 [..., columns].
    """
    if math.prod(inputs.shape[:-1]) > 1:
        return backend.product(inputs, matrix.full, transpose_second=transposed)
    return multiply(inputs, matrix.pairs, matrix.full.shape[0 if transposed else 1])


def multiply(inputs: Any, pairs: Any, size: int) -> Any:
    """Product of one row and a matrix in pairs.

    Args:
        inputs: float32 [..., rows], of one row in all.
        pairs: The matrix, as `pair` laid it out.
        size: Its columns.

    Returns:
        float32 [..., size].
    """
    steps, lines, groups, columns = pairs.shape
    factors = ops.reshape(inputs, (steps, lines, groups, 2))

    def add(step: Any, sums: Any) -> Any:
        for line in range(lines):
            both = ops.slice(pairs, (step, line, 0, 0), (1, 1, groups, columns))[0, 0]
            lower = ops.view(both * np.uint32(1 << 16), "float32")
            upper = ops.view(ops.bitwise_and(both, np.uint32(0xFFFF0000)), "float32")
            first, second = (ops.slice(factors, (step, line, 0, half), (1, 1, groups, 1))[0, 0] for half in range(2))
            sums = sums + first * lower + second * upper
        return sums

    sums = ops.fori_loop(0, steps, add, ops.zeros((groups, columns), "float32"))
    return ops.reshape(ops.sum(sums, axis=0)[:size], (*inputs.shape[:-1], size))
