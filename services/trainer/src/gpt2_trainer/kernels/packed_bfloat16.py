"""Products of one row with bfloat16 matrices on CPUs, as fast as memory delivers the weights.

With one row each weight is read for one multiplication, so half the bytes take half the time. XLA on CPUs has no such
product: it makes the whole matrix float32 first, seven times slower than float32 itself. The loop here is one that it
compiles to one vectorised pass on all cores: 124M generates 97 to 115 tokens a second, with float32 62 to 70.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from keras import config, ops
from numpy.typing import NDArray

from gpt2_trainer.kernels import cross_entropy
from gpt2_trainer.kernels.primitives import product
from gpt2_trainer.model import gpt2

_LINES = 8
# Weights of one pass: fewer are not worth the waking of a second core.
_WEIGHTS_PER_PASS = 12_288
# float32 weights of a line of the CPU's cache: rows that do not begin at one take three times as long.
_CACHE_LINE = 16


class PackedMatrix(NamedTuple):
    """A bfloat16 matrix in two forms; a tree of tensors, as compiled functions take them."""

    full: Any
    """float32 [rows, columns], of values that bfloat16 has: for several rows of inputs."""
    packed: Any
    """uint32 [steps, 8, groups, columns], see `pack`: for one row; of the transpose, where that is multiplied by."""


def is_supported() -> bool:
    """Whether the backend compiles the loop to one pass: JAX on a CPU."""
    if config.backend() != "jax":
        return False
    import jax  # heavy, and wanted with this backend alone

    return bool(jax.default_backend() == "cpu")


def pack(matrix: Any) -> NDArray[np.uint32] | None:
    """Packs each two consecutive rows of a matrix into one of 32-bit words.

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
    groups = min(divisors, key=lambda groups: abs(groups * matrix.shape[1] - _WEIGHTS_PER_PASS))
    bits = ops.convert_to_numpy(matrix).view(np.uint16).astype(np.uint32)
    packed = np.pad(bits[0::2] | bits[1::2] << 16, ((0, 0), (0, -matrix.shape[1] % _CACHE_LINE)))
    return packed.reshape(-1, _LINES, groups, packed.shape[1])


def embed(embedding: Any, token_ids: Any) -> Any:
    """See `gpt2.embed`."""
    return gpt2.embed(embedding.full if isinstance(embedding, PackedMatrix) else embedding, token_ids)


def matmul(inputs: Any, weight: Any) -> Any:
    """See `gpt2.matmul`; the inputs of a packed matrix are float32."""
    if not isinstance(weight, PackedMatrix):
        return gpt2.matmul(inputs, weight)
    if _rows(inputs) > 1:
        return product(inputs, weight.full)
    return multiply_row(inputs, weight.packed, weight.full.shape[1])


def logits(hidden: Any, embedding: Any, vocabulary_size: int) -> Any:
    """See `gpt2.logits`; what is packed of an embedding is its transpose."""
    if not isinstance(embedding, PackedMatrix):
        return cross_entropy.logits(hidden, embedding, vocabulary_size)
    if _rows(hidden) > 1:
        products = product(hidden, embedding.full, transpose_second=True)
    else:
        products = multiply_row(hidden, embedding.packed, embedding.full.shape[0])
    return gpt2.mask_padding(products, vocabulary_size)


def multiply_row(inputs: Any, packed: Any, size: int) -> Any:
    """Product of one row and a packed matrix.

    Args:
        inputs: float32 [..., rows], of one row in all.
        packed: The matrix, as `pack` laid it out.
        size: Its columns.

    Returns:
        float32 [..., size].
    """
    steps, lines, groups, columns = packed.shape
    factors = ops.reshape(inputs, (steps, lines, groups, 2))

    def add(step: Any, sums: Any) -> Any:
        for line in range(lines):
            both = ops.slice(packed, (step, line, 0, 0), (1, 1, groups, columns))[0, 0]
            # bfloat16 is the upper half of float32. A multiplication by 2**16 moves the lower row up, as XLA would
            # check each shift for being too wide.
            lower = ops.view(both * np.uint32(1 << 16), "float32")
            upper = ops.view(ops.bitwise_and(both, np.uint32(0xFFFF0000)), "float32")
            first, second = (ops.slice(factors, (step, line, 0, half), (1, 1, groups, 1))[0, 0] for half in range(2))
            sums = sums + first * lower + second * upper
        return sums

    sums = ops.fori_loop(0, steps, add, ops.zeros((groups, columns), "float32"))
    return ops.reshape(ops.sum(sums, axis=0)[:size], (*inputs.shape[:-1], size))


def _rows(inputs: Any) -> int:
    return math.prod(inputs.shape[:-1])
