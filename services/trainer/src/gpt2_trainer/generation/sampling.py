"""Draws the next token: temperature, top-k and top-p, the same in the service, in training and in SavedModels."""

from typing import Any

from keras import ops

from gpt2_trainer.configuration.sampling import SamplingOptions
from gpt2_trainer.generation.noise import Words, gumbel_noise
from gpt2_trainer.model.loss import MASKED

_FEW = 64
_EXCLUDED = -1e30


def count_candidates(options: SamplingOptions, vocabulary: int) -> int:
    """Tokens that need be ranked: few kinds of numbers, as each is compiled anew."""
    wanted = options.top_k if options.temperature else 1
    return min(vocabulary, max(_FEW, 1 << (wanted - 1).bit_length())) if wanted else vocabulary


def draw(
    logits: Any, keys: Words, position: Any, temperature: Any, top_k: Any, top_p: Any, candidates: int | None = None
) -> Any:
    """Draws one token for each row.

    Tokens are ranked; those after rank `top_k` are out; of the rest, those before which the probabilities already sum
    up to `top_p` are out. Of what is left, the token with the greatest sum of scaled logit and Gumbel noise is drawn,
    which draws by the probabilities. The noise belongs to the token, not to its rank: a rounding difference between
    backends changes the draw only where two sums are equal up to that difference.

    Args:
        logits: float32 [rows / n, vocabulary]; each row of them serves n rows of `keys` that follow each other.
        keys: `noise.stream_keys`, uint32 [rows].
        position: int32 scalar, tokens generated before.
        temperature: float32 scalar; 0: the likeliest token.
        top_k: int32 scalar; 0: all tokens.
        top_p: float32 scalar, over 0 and at most 1.
        candidates: Tokens to rank, where `top_k` is known to be no greater (0 is all); None: all.

    Returns:
        int32 [rows].
    """
    size = candidates or logits.shape[-1]
    # Looked up again by their ids: where both results of `top_k` are used, XLA sorts the whole vocabulary, which takes
    # a hundred times as long.
    token_ids = ops.top_k(logits, size)[1]
    ranked = ops.take_along_axis(logits, token_ids, axis=1)
    rank = ops.arange(size, dtype="int32")
    # Whatever is divided by, rank 0 stays first; below the bound only it is left, as with temperature 0.
    scaled = (ranked - ranked[:, :1]) / ops.maximum(temperature, 1e-6)
    limit = ops.where(temperature > 0, ops.where(top_k > 0, top_k, size), 1)
    # No temperature makes padding of the vocabulary or a banned token possible.
    allowed = (rank < limit) & (ranked > MASKED / 2)
    probabilities = ops.softmax(ops.where(allowed, scaled, _EXCLUDED), axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    kept = ops.where((allowed & (before < top_p)) | (rank == 0), scaled, _EXCLUDED)
    if keys[0].shape[0] != logits.shape[0]:
        repeats = keys[0].shape[0] // logits.shape[0]
        token_ids, kept = (ops.repeat(rows, repeats, axis=0) for rows in (token_ids, kept))
    noise = gumbel_noise(keys, position, token_ids)
    chosen = ops.argmax(kept + noise, axis=-1)
    return ops.cast(ops.take_along_axis(token_ids, chosen[:, None], axis=1)[:, 0], "int32")
