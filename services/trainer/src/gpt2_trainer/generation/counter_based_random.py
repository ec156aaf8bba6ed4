"""Random numbers that are a function of seed, sample, position and token alone, the same on every backend.

Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) in 32-bit integer
operations, so that JAX, TensorFlow and a SavedModel get the same bits.
"""

from typing import Any

from keras import ops

_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_ROUND_GROUPS = 5
_FRACTION_BITS = 23

Words = tuple[Any, Any]
"""Two uint32 tensors."""


def threefry(key: Words, counter: Words) -> Words:
    """Encrypts a counter with a key; all uint32, their shapes broadcast."""
    keys = (*key, ops.bitwise_xor(ops.bitwise_xor(*key), ops.cast(_PARITY, "uint32")))
    words = counter[0] + keys[0] + ops.zeros_like(counter[1]), counter[1] + keys[1] + ops.zeros_like(counter[0])
    rotations = tuple(ops.convert_to_tensor(group, "uint32") for group in _ROTATIONS)

    def four_rounds(group: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        (first, second), (used, *others), (now, later) = state
        for rotation in range(len(_ROTATIONS[0])):
            left, right = now[rotation], ops.cast(32, "uint32") - now[rotation]
            first = first + second
            second = ops.bitwise_or(ops.bitwise_left_shift(second, left), ops.bitwise_right_shift(second, right))
            second = ops.bitwise_xor(second, first)
        second = second + others[1] + ops.cast(group + 1, "uint32")
        return (first + others[0], second), (*others, used), (later, now)

    # A loop, as XLA takes minutes to compile the rounds one after the other.
    encrypted: tuple[Words, Any, Any] = ops.fori_loop(0, _ROUND_GROUPS, four_rounds, (words, keys, rotations))
    return encrypted[0]


def seed_words(seed: int) -> tuple[int, int]:
    """Low and high word of a seed, taken modulo 2**64."""
    return seed % 2**32, (seed >> 32) % 2**32


def stream_keys(seed: Words, samples: Any) -> Words:
    """Key of each sample's random numbers.

    Args:
        seed: Low and high word, uint32 scalars.
        samples: int32 [rows], number of the sample that each row is.
    """
    samples = ops.cast(samples, "uint32")
    return threefry(seed, (samples, ops.zeros_like(samples)))


def gumbel_noise(keys: Words, position: Any, token_ids: Any) -> Any:
    """Standard Gumbel noise for each token at one position.

    Args:
        keys: `stream_keys`, uint32 [rows].
        position: int32 scalar, tokens generated before.
        token_ids: int32 [rows, tokens].

    Returns:
        float32 [rows, tokens], finite.
    """
    tokens = ops.cast(token_ids, "uint32")
    key = (keys[0][:, None], keys[1][:, None])
    bits, _ = threefry(key, (tokens, ops.zeros_like(tokens) + ops.cast(position, "uint32")))
    # Odd multiples of 2**-24: exact in float32, and neither 0 nor 1.
    fraction = ops.cast(ops.bitwise_right_shift(bits, 32 - _FRACTION_BITS), "float32")
    uniform = (fraction + 0.5) * 2.0**-_FRACTION_BITS
    return -ops.log(-ops.log(uniform))
