"""Draws the next token: temperature, top-k and top-p, the same in the service, in training and in SavedModels."""

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from gpt2_trainer.configuration.sampling import SamplingConfig
from gpt2_trainer.generation.counter_based_random import Words, gumbel_noise
from gpt2_trainer.model.gpt2 import MASKED, Tensor

_MIN_CANDIDATES = 64
_EXCLUDED = -1e30
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class SamplingTensors(NamedTuple):
    """A `SamplingConfig` as scalars of a compiled function, so that other values need no other program.

    Args:
        temperature: float32, divides logits; 0: the likeliest token.
        top_k: int32, tokens that may be drawn; 0: all.
        top_p: float32 over 0 and at most 1, probability that the likeliest tokens must reach together.
        repetition_penalty: float32 over 0; 1: none.
        no_repeat_ngram_size: int32; 0: none.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    repetition_penalty: Tensor
    no_repeat_ngram_size: Tensor

    @classmethod
    def of(cls, config: SamplingConfig) -> "SamplingTensors":
        """The scalars of a configuration."""
        return cls(
            temperature=np.float32(min(config.temperature, _MAX_FLOAT32)),
            top_k=np.int32(config.top_k),
            top_p=np.float32(config.top_p),
            repetition_penalty=np.float32(config.repetition_penalty),
            no_repeat_ngram_size=np.int32(config.no_repeat_ngram_size),
        )


def count_candidates(config: SamplingConfig, vocabulary_size: int) -> int:
    """Tokens that need be ranked: few different numbers, as each is compiled by itself."""
    wanted = config.top_k if config.temperature else 1
    return min(vocabulary_size, max(_MIN_CANDIDATES, 1 << (wanted - 1).bit_length())) if wanted else vocabulary_size


def sample_tokens(
    logits: Any, keys: Words, position: Any, sampling: SamplingTensors, candidates: int | None = None
) -> Any:
    """Draws one token for each row.

    Tokens are ranked. Out are those after rank `top_k`, and of the rest those before which the probabilities already
    sum up to `top_p` (nucleus sampling, Holtzman et al. 2020). Of what is left, the token with the largest sum of
    scaled logit and Gumbel noise is drawn, which draws by the probabilities (Gumbel-max). The noise belongs to the
    token, not to its rank: a rounding difference between backends changes the draw only where two sums are equal up to
    that difference.

    Args:
        logits: float32 [rows / n, vocabulary]; each row of them serves n consecutive rows of `keys`.
        keys: `stream_keys`, uint32 [rows].
        position: int32 scalar, tokens generated before.
        sampling: Temperature, top-k and top-p.
        candidates: Tokens to rank, where `top_k` is known to be no larger (0 is all); None: all.

    Returns:
        int32 [rows].
    """
    size = candidates or logits.shape[-1]
    # Logits are looked up by id: where both results of `top_k` are used, XLA sorts the whole vocabulary, which takes a
    # hundred times as long.
    token_ids = ops.top_k(logits, size)[1]
    ranked = ops.take_along_axis(logits, token_ids, axis=1)
    rank = ops.arange(size, dtype="int32")
    # Rank 0 stays first whatever the divisor; below the bound only it is left, as with temperature 0.
    scaled = (ranked - ranked[:, :1]) / ops.maximum(sampling.temperature, 1e-6)
    limit = ops.where(sampling.temperature > 0, ops.where(sampling.top_k > 0, sampling.top_k, size), 1)
    # No temperature makes padding of the vocabulary or a banned token possible.
    allowed = (rank < limit) & (ranked > MASKED / 2)
    probabilities = ops.softmax(ops.where(allowed, scaled, _EXCLUDED), axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    kept = ops.where((allowed & (before < sampling.top_p)) | (rank == 0), scaled, _EXCLUDED)
    if keys[0].shape[0] != logits.shape[0]:
        repeats = keys[0].shape[0] // logits.shape[0]
        token_ids, kept = (ops.repeat(rows, repeats, axis=0) for rows in (token_ids, kept))
    drawn = ops.argmax(kept + gumbel_noise(keys, position, token_ids), axis=-1)
    return ops.cast(ops.take_along_axis(token_ids, drawn[:, None], axis=1)[:, 0], "int32")
