"""GPT-2, the definition: the numbers that training, generation, evaluation and export compute are those of this file.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", and OpenAI's `gpt-2/src/model.py`; attention
is that of Vaswani et al. 2017, section 3.2. `Variant` holds what relatives of GPT-2 compute otherwise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import keras
from keras import ops

from gpt2_trainer.configuration.architecture import NORM_EPSILON, Architecture
from gpt2_trainer.model.dropout import Dropout
from gpt2_trainer.model.weights import LAYER_PARTS, POSITION_EMBEDDING, TOKEN_EMBEDDING, layer_weight, projection

Tensor = Any
"""A tensor of the backend."""

MASKED = -1e9
"""Logit of what cannot be: its exponential is 0 in float32 and bfloat16, and it is finite in both."""


def embed(embedding: Tensor, token_ids: Tensor) -> Tensor:
    """Rows of an embedding [rows, width] by int32 ids [...]: [..., width]."""
    return ops.take(embedding, token_ids, axis=0)


def matmul(inputs: Tensor, weight: Tensor) -> Tensor:
    """[..., rows] times [rows, columns] in the dtype of `inputs`: [..., columns]."""
    return ops.matmul(inputs, ops.cast(weight, inputs.dtype))


def layer_norm(hidden: Tensor, gain: Tensor, bias: Tensor, *, epsilon: float = NORM_EPSILON) -> Tensor:
    """Layer normalisation over the last axis (Ba et al. 2016): (x - mean) / √(variance + epsilon) · gain + bias.

    Args:
        hidden: [..., width], compute dtype; the arithmetic is float32.
        gain: float32 [width].
        bias: float32 [width].
        epsilon: Added to the variance.

    Returns:
        Shape and dtype of `hidden`.
    """
    exact = ops.cast(hidden, "float32")
    centred = exact - ops.mean(exact, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return ops.cast(centred * ops.rsqrt(variance + epsilon) * gain + bias, hidden.dtype)


def gelu(hidden: Tensor, bias: Tensor, *, exact: bool = False) -> Tensor:
    """GELU of hidden + bias (Hendrycks and Gimpel 2016): x Φ(x), by default with the tanh approximation of Φ.

    Args:
        hidden: [..., width], compute dtype; the arithmetic is float32.
        bias: float32 [width].
        exact: Use the normal distribution itself rather than its approximation.

    Returns:
        Shape and dtype of `hidden`.
    """
    return ops.cast(ops.gelu(ops.cast(hidden, "float32") + bias, approximate=not exact), hidden.dtype)


def attention_weights(scores: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """Masked attention weights: softmax(scores · scale) over the visible keys.

    Args:
        scores: Q Kᵀ, [..., queries, keys], compute dtype; the softmax is float32.
        mask: bool [queries, keys], which keys each query sees.
        scale: 1 / √head_size in GPT-2.

    Returns:
        Shape and dtype of `scores`; each row sums to 1.
    """
    visible = ops.where(mask, ops.cast(scores, "float32") * scale, MASKED)
    return ops.cast(ops.softmax(visible, axis=-1), scores.dtype)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    scale: float,
    drop: Callable[[Tensor], Tensor] | None = None,
    weights: Callable[..., Tensor] = attention_weights,
) -> Tensor:
    """Scaled dot-product attention: softmax(Q Kᵀ · scale) V.

    Args:
        queries: [..., queries, head_size], compute dtype.
        keys: [..., keys, head_size].
        values: [..., keys, head_size].
        mask: bool [queries, keys], which keys each query sees.
        scale: What scores are multiplied with.
        drop: Dropout of the attention weights.
        weights: How the attention weights are computed.

    Returns:
        [..., queries, head_size].
    """
    scores = ops.matmul(queries, ops.swapaxes(keys, -1, -2))
    attended = weights(scores, mask, scale=scale)
    return ops.matmul(attended if drop is None else drop(attended), values)


def logits(hidden: Tensor, embedding: Tensor, vocabulary_size: int) -> Tensor:
    """Logits of the next token: products with the token embedding, which GPT-2's head is tied to.

    Args:
        hidden: [..., width], compute dtype.
        embedding: [rows, width].
        vocabulary_size: The exact vocabulary; rows beyond it are padding.

    Returns:
        float32 [..., rows]; those of padding are MASKED.
    """
    return mask_padding(matmul(hidden, ops.transpose(embedding)), vocabulary_size)


def mask_padding(products: Tensor, vocabulary_size: int) -> Tensor:
    """Logits [..., rows] in float32, those beyond the vocabulary MASKED."""
    exact, rows = ops.cast(products, "float32"), products.shape[-1]
    return exact if vocabulary_size == rows else ops.where(ops.arange(rows) < vocabulary_size, exact, MASKED)


def token_losses(hidden: Tensor, embedding: Tensor, targets: Tensor, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each target, and whether it is the likeliest token; see `logits`.

    Args:
        hidden: [tokens, width], compute dtype.
        embedding: float32 [rows, width].
        targets: int32 [tokens].
        vocabulary_size: The exact vocabulary.

    Returns:
        float32 [tokens] in nats; bool [tokens].
    """
    scores, targets = logits(hidden, embedding, vocabulary_size), ops.cast(targets, "int32")
    wanted = ops.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
    return ops.logsumexp(scores, axis=-1) - wanted, ops.equal(ops.argmax(scores, axis=-1), targets)


def mean_loss(hidden: Tensor, embedding: Tensor, targets: Tensor, vocabulary_size: int) -> Tensor:
    """Mean of `token_losses`, float32 scalar, in nats."""
    return ops.mean(token_losses(hidden, embedding, targets, vocabulary_size)[0])


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The operations that a device may compute faster; by default those above, which define the results."""

    embed: Callable[[Tensor, Tensor], Tensor] = embed
    matmul: Callable[[Tensor, Tensor], Tensor] = matmul
    layer_norm: Callable[..., Tensor] = layer_norm
    gelu: Callable[..., Tensor] = gelu
    attention: Callable[..., Tensor] = attention
    causal_attention: Callable[..., Tensor] = attention
    """Of tokens to themselves, with a causal mask and without dropout."""
    logits: Callable[[Tensor, Tensor, int], Tensor] = logits
    token_losses: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] = token_losses
    """Not to be differentiated."""
    mean_loss: Callable[[Tensor, Tensor, Tensor, int], Tensor] = mean_loss


REFERENCE = Kernels()


class KVCache(Protocol):
    """Keys and values of the tokens before those of a call; a tree of tensors that calls do not change."""

    @property
    def length(self) -> Tensor:
        """int32 scalar, tokens held: the position of the next one."""

    def mask(self, positions: Tensor) -> Tensor:
        """Which keys that `append` returns are visible from int32 positions [time]: bool [time, keys]."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Any, Tensor, Tensor]:
        """The cache with keys and values [batch · heads, time, head_size] of new tokens; all keys, all values."""


@dataclass(frozen=True, kw_only=True)
class GPT2:
    """A GPT-2 as functions of its weights, a mapping from the names in `weights.py` to float32 tensors.

    Args:
        architecture: Sizes.
        compute_dtype: Dtype of matrix products and of what lies between them; norms, softmax and losses are float32.
        remat: Compute each block again in the backward pass rather than keep its activations.
        kernels: How the operations are computed.
    """

    architecture: Architecture
    compute_dtype: str = "float32"
    remat: bool = False
    kernels: Kernels = REFERENCE

    def logits(self, weights: Mapping[str, Tensor], token_ids: Tensor) -> Tensor:
        """Logits of every next token.

        Args:
            weights: Weights by name, the vocabulary exact or padded.
            token_ids: int32 [batch, time], time at most n_ctx.

        Returns:
            float32 [batch, time, rows of the embedding]; those of padding are MASKED.
        """
        hidden, _ = self._hidden_states(weights, token_ids)
        return self._head(weights, hidden)

    def next_logits(
        self, weights: Mapping[str, Tensor], token_ids: Tensor, cache: KVCache, last: Tensor
    ) -> tuple[Tensor, Any]:
        """Logits of the token that follows new tokens and those in a cache.

        Args:
            weights: Weights by name, the vocabulary exact or padded.
            token_ids: int32 [batch, time], the new tokens.
            cache: Keys and values of the tokens before.
            last: int32 scalar, index of the new token whose successor is wanted.

        Returns:
            float32 [batch, rows of the embedding]; the cache with the new tokens.
        """
        hidden, cache = self._hidden_states(weights, token_ids, cache)
        return self._head(weights, ops.take(hidden, last, axis=1)), cache

    def mean_loss(
        self, weights: Mapping[str, Tensor], token_ids: Tensor, targets: Tensor, dropout: Dropout | None = None
    ) -> Tensor:
        """Cross-entropy in nats, averaged over all tokens: the training objective, float32 scalar.

        Args:
            weights: Weights by name, the vocabulary exact or padded.
            token_ids: int32 [batch, time].
            targets: int32 [batch, time], the token that follows each.
            dropout: Dropout of this pass.
        """
        return self.kernels.mean_loss(*self._loss_inputs(weights, token_ids, targets, dropout))

    def losses(self, weights: Mapping[str, Tensor], token_ids: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each sequence in nats, averaged over its tokens, float32 [batch]; see `token_losses`."""
        return ops.mean(self.token_losses(weights, token_ids, targets)[0], axis=-1)

    def token_losses(self, weights: Mapping[str, Tensor], token_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each target, float32 [batch, time] in nats; whether it is the likeliest, bool [batch, time].

        Args:
            weights: Weights by name, the vocabulary exact or padded.
            token_ids: int32 [batch, time].
            targets: int32 [batch, time], the token that follows each.
        """
        losses, likeliest = self.kernels.token_losses(*self._loss_inputs(weights, token_ids, targets))
        return ops.reshape(losses, token_ids.shape), ops.reshape(likeliest, token_ids.shape)

    def _loss_inputs(
        self, weights: Mapping[str, Tensor], token_ids: Tensor, targets: Tensor, dropout: Dropout | None = None
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """What the kernels' losses take: the batch's tokens on one axis."""
        hidden, _ = self._hidden_states(weights, token_ids, dropout=dropout)
        tokens = token_ids.shape[0] * token_ids.shape[1]
        hidden = ops.reshape(hidden, (tokens, hidden.shape[-1]))
        targets, embedding = ops.reshape(targets, (tokens,)), weights[projection(self.architecture)]
        return hidden, embedding, targets, self.architecture.vocabulary_size

    def _head(self, weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        return self.kernels.logits(hidden, weights[projection(self.architecture)], self.architecture.vocabulary_size)

    def _hidden_states(
        self,
        weights: Mapping[str, Tensor],
        token_ids: Tensor,
        cache: Any = None,
        dropout: Dropout | None = None,
    ) -> tuple[Tensor, Any]:
        """Output of the last norm, [batch, time, width], and the cache with the new tokens."""
        time = ops.shape(token_ids)[1]
        steps = ops.arange(time, dtype="int32")
        if cache is None:
            # A slice, as the gradient of a slice is dense, and exact in any order of summation.
            mask, positions = steps[:, None] >= steps[None, :], weights[POSITION_EMBEDDING][:time]
        else:
            steps = cache.length + steps
            mask, positions = cache.mask(steps), ops.take(weights[POSITION_EMBEDDING], steps, axis=0)
        hidden = ops.cast(self.kernels.embed(weights[TOKEN_EMBEDDING], token_ids) + positions, self.compute_dtype)
        if dropout is not None:
            hidden = dropout.apply(hidden, "embedding")
        for layer in range(self.architecture.layers.n_layer):
            tensors = [weights[layer_weight(layer, part)] for part in LAYER_PARTS]
            block = partial(self._block, layer, mask, cache, dropout)
            if self.remat and cache is None:
                # All that gradients go to is an argument, as rematerialisation asks. The mask is from outside, as the
                # hand-written gradients refer to it.
                hidden = keras.remat(lambda *arguments, block=block: block(*arguments)[0])(hidden, *tensors)
            else:
                hidden, cache = block(hidden, *tensors)
        return self._norm(hidden, weights["ln_f.weight"], weights["ln_f.bias"]), cache

    def _block(
        self, layer: int, mask: Tensor, cache: Any, dropout: Dropout | None, hidden: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Any]:
        """One pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""
        weights = dict(zip(LAYER_PARTS, tensors, strict=True))
        normed = self._norm(hidden, weights["ln_1.weight"], weights["ln_1.bias"])
        attended, cache = self._self_attention(weights, layer, normed, mask, cache, dropout)
        if dropout is not None:
            attended = dropout.apply(attended, "attention_output", layer)
        hidden = hidden + attended
        normed = self._norm(hidden, weights["ln_2.weight"], weights["ln_2.bias"])
        # Bias and GELU in one kernel, as the bias is added in float32.
        exact = self.architecture.variant.activation_function == "gelu"
        expanded = self.kernels.matmul(normed, weights["mlp.c_fc.weight"])
        expanded = self.kernels.gelu(expanded, weights["mlp.c_fc.bias"], exact=exact)
        projected = self._linear(weights, "mlp.c_proj", expanded)
        if dropout is not None:
            projected = dropout.apply(projected, "mlp_output", layer)
        return hidden + projected, cache

    def _self_attention(
        self,
        weights: Mapping[str, Tensor],
        layer: int,
        hidden: Tensor,
        mask: Tensor,
        cache: Any,
        dropout: Dropout | None,
    ) -> tuple[Tensor, Any]:
        """Multi-head attention of [batch, time, width] to itself and to a cache."""
        (batch, time, width), heads = ops.shape(hidden), self.architecture.layers.n_head
        size = self.architecture.head_size
        projected = ops.split(self._linear(weights, "attn.c_attn", hidden), 3, axis=-1)
        # [batch, time, width] -> [batch, heads, time, head_size]
        queries, keys, values = (
            ops.transpose(ops.reshape(part, (batch, time, heads, size)), (0, 2, 1, 3)) for part in projected
        )
        if cache is not None:
            # XLA updates a cache in place only if samples and heads are one axis, as in its own products.
            rows = (batch * heads, time, size)
            queries, keys, values = (ops.reshape(part, rows) for part in (queries, keys, values))
            cache, keys, values = cache.append(layer, keys, values)
        attend = self.kernels.attention
        if dropout is not None and dropout.rates.attention > 0:
            attend = partial(attend, drop=partial(dropout.apply, place="attention", layer=layer))
        elif cache is None:
            attend = self.kernels.causal_attention
        mixed = attend(queries, keys, values, mask, scale=self.architecture.attention_factor(layer))
        mixed = ops.transpose(ops.reshape(mixed, (batch, heads, time, size)), (0, 2, 1, 3))
        return self._linear(weights, "attn.c_proj", ops.reshape(mixed, (batch, time, width))), cache

    def _linear(self, weights: Mapping[str, Tensor], name: str, inputs: Tensor) -> Tensor:
        products = self.kernels.matmul(inputs, weights[f"{name}.weight"])
        return products + ops.cast(weights[f"{name}.bias"], self.compute_dtype)

    def _norm(self, hidden: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return self.kernels.layer_norm(hidden, gain, bias, epsilon=self.architecture.variant.layer_norm_epsilon)
