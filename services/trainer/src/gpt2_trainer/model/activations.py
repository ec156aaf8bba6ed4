"""What GPT-2 does between products of matrices: layer norm, attention's shares and the GELU, as pure functions.

All compute in float32 and return the type of their input. Norms and shares come with gradients written by hand: what
differentiation makes of them sums twice as often.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from gpt2_trainer.configuration.architecture import NORM_EPSILON
from gpt2_trainer.model.backend import row_sums, with_gradient
from gpt2_trainer.model.loss import MASKED


def norm(hidden: Any, gain: Any, bias: Any, *, epsilon: float = NORM_EPSILON) -> Any:
    """Layer norm over the last axis.

    Args:
        hidden: [..., width].
        gain: float32 [width].
        bias: float32 [width].
        epsilon: Added to the variance.
    """
    width, axes = hidden.shape[-1], tuple(range(len(hidden.shape) - 1))

    def forwards(hidden: Any, gain: Any, bias: Any) -> tuple[Any, Callable[..., Any]]:
        exact = ops.cast(hidden, "float32")
        mean = row_sums(exact) / width
        centred = exact - mean
        scale = ops.rsqrt(row_sums(ops.square(centred)) / width + epsilon)

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            towards = ops.cast(upstream, "float32")
            # Made again from the input, which is kept anyway.
            normed = (ops.cast(hidden, "float32") - mean) * scale
            slope = towards * gain
            slope = scale * (slope - row_sums(slope) / width - normed * (row_sums(slope * normed) / width))
            return ops.cast(slope, hidden.dtype), ops.sum(towards * normed, axis=axes), ops.sum(towards, axis=axes)

        return ops.cast(centred * scale * gain + bias, hidden.dtype), gradient

    return with_gradient(forwards)(hidden, gain, bias)


def attention_shares(scores: Any, mask: Any, *, factor: float) -> Any:
    """How much each token takes from each of those it sees: their sum is 1.

    Args:
        scores: [..., time, keys], products of queries and keys.
        mask: bool [time, keys], which of the keys each token sees.
        factor: What scores are multiplied with first; 1 / sqrt(head size) in GPT-2.
    """

    def forwards(scores: Any) -> tuple[Any, Callable[..., Any]]:
        exact = ops.where(mask, ops.cast(scores, "float32") * factor, MASKED)
        exponentials = ops.exp(exact - ops.max(exact, axis=-1, keepdims=True))
        shares = ops.cast(exponentials / row_sums(exponentials), scores.dtype)

        def gradient(upstream: Any) -> Any:
            towards = ops.cast(upstream, "float32")
            exact = ops.cast(shares, "float32")
            return ops.cast(exact * (towards - row_sums(towards * exact)) * factor, shares.dtype)

        return shares, gradient

    return with_gradient(forwards)(scores)


def gelu(hidden: Any, bias: Any, *, exact: bool = False) -> Any:
    """GELU, exact or in its tanh form, of `hidden` [..., width] plus a float32 bias [width]."""
    return ops.cast(ops.gelu(ops.cast(hidden, "float32") + bias, approximate=not exact), hidden.dtype)
