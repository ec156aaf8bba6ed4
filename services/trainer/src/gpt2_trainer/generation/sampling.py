"""Draws the next token: temperature, top-k and top-p, the same in the service, in training and in SavedModels."""

from typing import Any

from keras import ops

from gpt2_trainer.configuration.sampling import SamplingOptions

_FEW = 64


def count_candidates(options: SamplingOptions, vocabulary: int) -> int:
    """Tokens that need be ranked: few kinds of numbers, as each is compiled anew."""
    wanted = options.top_k if options.temperature else 1
    return min(vocabulary, max(_FEW, 1 << (wanted - 1).bit_length())) if wanted else vocabulary


def draw(logits: Any, uniform: Any, temperature: Any, top_k: Any, top_p: Any, candidates: int | None = None) -> Any:
    """Draws one token for each row.

    Tokens are ranked; those after rank `top_k` are out; of the rest, those before which the chances already sum up to
    `top_p` are out; then the chances of what is left are walked along until they reach the random number.

    Args:
        logits: float32 [batch or 1, vocabulary].
        uniform: float32 [batch], random numbers from 0 to below 1.
        temperature: float32 scalar; 0: the likeliest token.
        top_k: int32 scalar; 0: all tokens.
        top_p: float32 scalar, over 0 and at most 1.
        candidates: Tokens to rank, where `top_k` is known to be no greater (0 is all); None: all.

    Returns:
        int32 [batch].
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
    chances = ops.softmax(ops.where(rank < limit, scaled, -1e30), axis=-1)
    before = ops.cumsum(chances, axis=-1) - chances
    chances = ops.where((before < top_p) | (rank == 0), chances, 0.0)
    reached = ops.cumsum(chances, axis=-1)
    wanted = uniform[:, None] * reached[:, -1:]
    chosen = ops.sum(ops.cast(reached <= wanted, "int32"), axis=-1)
    # Rounding may make the number reach the sum itself; the last token with a chance is meant then.
    last = ops.sum(ops.cast(chances > 0, "int32"), axis=-1) - 1
    chosen = ops.minimum(chosen, last)
    rows = ops.broadcast_to(token_ids, (ops.shape(uniform)[0], size))
    return ops.cast(ops.take_along_axis(rows, chosen[:, None], axis=1)[:, 0], "int32")
