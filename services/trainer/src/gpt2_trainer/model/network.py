"""GPT-2's arithmetic, written once, in Keras operations, for training, generation and export on every backend.

The network is a function of its weights: a mapping from the names in `weights.py` to tensors. A TensorFlow gradient
tape, `jax.jit`, rematerialisation and a SavedModel all take such functions as they are.

Pre-norm transformer with tied embeddings, tanh GELU and epsilon 1e-5: OpenAI's `gpt-2/src/model.py`. What relatives
of GPT-2 have otherwise is in `Variant`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, Protocol

import keras
from keras import ops

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.loss_parts import MOST_SCORES, count_parts
from gpt2_trainer.model import activations, loss, paired
from gpt2_trainer.model.backend import fused, has_flash_attention, linear
from gpt2_trainer.model.dropout import Dropout
from gpt2_trainer.model.paired import PairedMatrix
from gpt2_trainer.model.weights import LAYER_PARTS, POSITION_EMBEDDING, TOKEN_EMBEDDING, layer_weight, projection

Tensor = Any
"""A tensor of the backend."""


class Memory(Protocol):
    """Keeps the keys and values of tokens seen before."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new ones [batch * head, time, head_size] of one layer and returns all of that layer."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A GPT-2 without its weights.

    Args:
        architecture: Sizes.
        precision: Type that matrices are multiplied in; norms, softmax and losses are float32 always.
        rematerialise: Compute each layer again in the backward pass rather than keep what is inside it.
        most_scores: Scores of next tokens that may exist at one time in a loss; see `loss.py`.
        fuse: Have XLA compile what is between products, in a TensorFlow graph that is not compiled as a whole.
    """

    architecture: Architecture
    precision: str = "float32"
    rematerialise: bool = False
    most_scores: int = MOST_SCORES
    fuse: bool = False

    def logits(self, weights: Mapping[str, Tensor], token_ids: Tensor) -> Tensor:
        """Scores of every next token.

        Args:
            weights: Weights by name, the vocabulary exact or padded.
            token_ids: int32 [batch, time], time at most n_ctx.

        Returns:
            float32 [batch, time, vocabulary as in the weights]; what is padding is so low that its chance is 0.
        """
        return self._project(weights, self._transform(weights, token_ids))

    def mean_loss(
        self, weights: Mapping[str, Tensor], token_ids: Tensor, targets: Tensor, dropout: Dropout | None = None
    ) -> Tensor:
        """Cross-entropy in nats, averaged over all tokens; arguments as for `losses`. float32 scalar.

        Only here can dropout be applied: all else computes what a finished model answers.
        """
        return loss.mean_loss(*self._loss_inputs(weights, token_ids, targets, dropout))

    def losses(self, weights: Mapping[str, Tensor], token_ids: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each sequence, in nats, averaged over its tokens.

        Args:
            weights: Weights by name, the vocabulary exact or padded.
            token_ids: int32 [batch, time].
            targets: int32 [batch, time], the token that follows each.

        Returns:
            float32 [batch].
        """
        return ops.mean(self.token_results(weights, token_ids, targets)[0], axis=-1)

    def token_results(self, weights: Mapping[str, Tensor], token_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How well each token is foretold; arguments as for `losses`.

        Returns:
            float32 [batch, time], cross-entropy in nats; bool [batch, time], whether it is the likeliest one.
        """
        hidden, embedding, *others = self._loss_inputs(weights, token_ids, targets)
        losses, hits = loss.token_results(hidden, ops.cast(embedding, self.precision), *others)
        return ops.reshape(losses, token_ids.shape), ops.reshape(hits, token_ids.shape)

    def _loss_inputs(
        self, weights: Mapping[str, Tensor], token_ids: Tensor, targets: Tensor, dropout: Dropout | None = None
    ) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """What the functions of `loss.py` take."""
        hidden = self._transform(weights, token_ids, dropout=dropout)
        embedding = weights[projection(self.architecture)]
        tokens = token_ids.shape[0] * token_ids.shape[1]
        parts = count_parts(tokens, embedding.shape[0], self.most_scores)
        hidden = ops.reshape(hidden, (tokens, hidden.shape[-1]))
        return hidden, embedding, ops.reshape(targets, (tokens,)), self.architecture.vocabulary_size, parts

    def next_logits(
        self,
        weights: Mapping[str, Tensor],
        token_ids: Tensor,
        memory: Memory,
        start: Tensor,
        mask: Tensor,
        last: Tensor,
    ) -> Tensor:
        """Scores of the token that follows new tokens, given those before in a memory.

        Args:
            weights: Weights by name, the vocabulary exact or padded.
            token_ids: int32 [batch, time], the new tokens.
            memory: What the tokens before left; it takes in the new ones.
            start: int32 scalar, position of the first new token.
            mask: bool [time, keys], which of the keys that the memory returns each new token sees.
            last: int32 scalar, index of the new token whose successor is wanted.

        Returns:
            float32 [batch, vocabulary as in the weights].
        """
        hidden = self._transform(weights, token_ids, memory, start, mask)
        return self._project(weights, ops.take(hidden, last, axis=1))

    def _transform(
        self,
        weights: Mapping[str, Tensor],
        token_ids: Tensor,
        memory: Memory | None = None,
        start: Tensor | None = None,
        mask: Tensor | None = None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        time = ops.shape(token_ids)[1]
        if start is None:
            # A slice, as the gradient of a slice is dense and exact in any order of summation.
            positions = weights[POSITION_EMBEDDING][:time]
        else:
            positions = ops.take(weights[POSITION_EMBEDDING], start + ops.arange(time, dtype="int32"), axis=0)
        if mask is None:
            steps = ops.arange(time, dtype="int32")
            mask = steps[:, None] >= steps[None, :]
        embedding = weights[TOKEN_EMBEDDING]
        embedding = embedding.full if isinstance(embedding, PairedMatrix) else embedding
        hidden = ops.cast(ops.take(embedding, token_ids, axis=0) + positions, self.precision)
        if dropout is not None:
            hidden = dropout.apply(hidden, "embedding")
        for layer in range(self.architecture.layers.n_layer):
            parts = [weights[layer_weight(layer, part)] for part in LAYER_PARTS]

            # All that gradients go to is an argument, as rematerialisation asks; the mask must be none on TensorFlow.
            def block(hidden: Tensor, *parts: Tensor, layer: int = layer, mask: Tensor = mask) -> Tensor:
                return self._block(dict(zip(LAYER_PARTS, parts, strict=True)), hidden, mask, layer, memory, dropout)

            hidden = (keras.remat(block) if self.rematerialise else block)(hidden, *parts)
        return self._norm(hidden, weights["ln_f.weight"], weights["ln_f.bias"])

    def _block(
        self,
        parts: Mapping[str, Tensor],
        hidden: Tensor,
        mask: Tensor,
        layer: int,
        memory: Memory | None,
        dropout: Dropout | None,
    ) -> Tensor:
        normed = self._norm(hidden, parts["ln_1.weight"], parts["ln_1.bias"])
        attended = self._attend(parts, normed, mask, layer, memory, dropout)
        if dropout is not None:
            attended = dropout.apply(attended, "attention_output", layer)
        hidden = hidden + attended
        normed = self._norm(hidden, parts["ln_2.weight"], parts["ln_2.bias"])
        inner = self._gelu(self._product(parts, "mlp.c_fc", normed), parts["mlp.c_fc.bias"])
        projected = self._linear(parts, "mlp.c_proj", inner)
        if dropout is not None:
            projected = dropout.apply(projected, "mlp_output", layer)
        return hidden + projected

    def _attend(
        self,
        parts: Mapping[str, Tensor],
        hidden: Tensor,
        mask: Tensor,
        layer: int,
        memory: Memory | None,
        dropout: Dropout | None,
    ) -> Tensor:
        batch, time, width = ops.shape(hidden)
        size = self.architecture.head_size
        queries, keys, values = (
            ops.reshape(part, (batch, time, self.architecture.layers.n_head, size))
            for part in ops.split(self._linear(parts, "attn.c_attn", hidden), 3, axis=-1)
        )
        # The fused attention that Keras offers has no dropout.
        drops = dropout is not None and dropout.rates.attention > 0
        if memory is None and not drops and has_flash_attention(self.precision, size):
            scale = self.architecture.attention_factor(layer)
            mixed = ops.dot_product_attention(queries, keys, values, scale=scale, is_causal=True, flash_attention=True)
            return self._linear(parts, "attn.c_proj", ops.reshape(mixed, (batch, time, width)))
        queries, keys, values = (ops.transpose(part, (0, 2, 1, 3)) for part in (queries, keys, values))
        if memory is not None:
            # One axis for samples and heads, as XLA computes with it: otherwise it copies what a memory holds.
            rows = (batch * self.architecture.layers.n_head, time, size)
            queries, keys, values = (ops.reshape(part, rows) for part in (queries, keys, values))
            keys, values = memory.extend(layer, keys, values)
        scores = ops.matmul(queries, ops.swapaxes(keys, -1, -2))
        shares = self._shares(self.architecture.attention_factor(layer))(scores, mask)
        if dropout is not None:
            shares = dropout.apply(shares, "attention", layer)
        mixed = ops.matmul(shares, values)
        mixed = ops.reshape(mixed, (batch, self.architecture.layers.n_head, time, size))
        joined = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (batch, time, width))
        return self._linear(parts, "attn.c_proj", joined)

    def _linear(self, parts: Mapping[str, Tensor], name: str, inputs: Tensor) -> Tensor:
        return self._product(parts, name, inputs) + ops.cast(parts[f"{name}.bias"], self.precision)

    def _product(self, parts: Mapping[str, Tensor], name: str, inputs: Tensor) -> Tensor:
        weight = parts[f"{name}.weight"]
        if isinstance(weight, PairedMatrix):
            return paired.product(inputs, weight)
        weight = ops.cast(weight, self.precision)
        return linear(inputs, weight) if self.fuse else ops.matmul(inputs, weight)

    @cached_property
    def _norm(self) -> Callable[..., Tensor]:
        return self._between(partial(activations.norm, epsilon=self.architecture.variant.layer_norm_epsilon))

    @cached_property
    def _shares(self) -> Callable[[float], Callable[..., Tensor]]:
        """Attention weights by the factor of their scores, of which relatives have one for each layer."""
        return cache(lambda factor: self._between(partial(activations.attention_shares, factor=factor)))

    @cached_property
    def _gelu(self) -> Callable[..., Tensor]:
        exact = self.architecture.variant.activation_function == "gelu"
        return self._between(partial(activations.gelu, exact=exact))

    def _between(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return fused(function) if self.fuse else function

    def _project(self, weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        embedding, size = weights[projection(self.architecture)], self.architecture.vocabulary_size
        if isinstance(embedding, PairedMatrix):
            return loss.exact(paired.product(hidden, embedding, transposed=True), size)
        return loss.scores(hidden, ops.cast(embedding, self.precision), size)
