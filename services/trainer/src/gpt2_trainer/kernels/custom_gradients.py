"""Layer norm and attention weights with gradients written by hand, in float32 inside.

Automatic differentiation keeps more and sums rows twice as often; on CPUs each sum is a separate pass. A small
model trains with 2 % more tokens a second than by the reference (TensorFlow, Zen 5, 2 cores, float32), and
with 11 % more on JAX (Xeon with AMX, 2 cores, float32).
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from gpt2_trainer.configuration.architecture import NORM_EPSILON
from gpt2_trainer.kernels.primitives import column_sums, row_sums, with_gradient
from gpt2_trainer.model.gpt2 import MASKED


def layer_norm(hidden: Any, gain: Any, bias: Any, *, epsilon: float = NORM_EPSILON) -> Any:
    """See `gpt2.layer_norm`.

    With x̂ the normed input and g the upstream gradient times the gain, the input's gradient is
    (g - mean(g) - x̂ mean(g x̂)) / √(variance + epsilon).
    """
    width = hidden.shape[-1]

    def forward(hidden: Any, gain: Any, bias: Any) -> tuple[Any, Callable[..., Any]]:
        exact = ops.cast(hidden, "float32")
        mean = row_sums(exact) / width
        centred = exact - mean
        scale = ops.rsqrt(row_sums(ops.square(centred)) / width + epsilon)

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            upstream = ops.cast(upstream, "float32")
            # Computed again from the input, which is kept anyway.
            normed = (ops.cast(hidden, "float32") - mean) * scale
            slope = upstream * gain
            slope = scale * (slope - row_sums(slope) / width - normed * (row_sums(slope * normed) / width))
            return ops.cast(slope, hidden.dtype), column_sums(upstream * normed), column_sums(upstream)

        return ops.cast(centred * scale * gain + bias, hidden.dtype), gradient

    return with_gradient(forward)(hidden, gain, bias)


def attention_weights(scores: Any, mask: Any, *, scale: float) -> Any:
    """See `gpt2.attention_weights`. With weights p and upstream gradient g, the gradient is p (g - Σ g p) · scale."""

    def forward(scores: Any) -> tuple[Any, Callable[..., Any]]:
        visible = ops.where(mask, ops.cast(scores, "float32") * scale, MASKED)
        exponentials = ops.exp(visible - ops.max(visible, axis=-1, keepdims=True))
        weights = ops.cast(exponentials / row_sums(exponentials), scores.dtype)

        def gradient(upstream: Any) -> Any:
            upstream = ops.cast(upstream, "float32")
            # In the output's dtype, as that is what is kept for the product with the values.
            exact = ops.cast(weights, "float32")
            return ops.cast(exact * (upstream - row_sums(upstream * exact)) * scale, weights.dtype)

        return weights, gradient

    return with_gradient(forward)(scores)
