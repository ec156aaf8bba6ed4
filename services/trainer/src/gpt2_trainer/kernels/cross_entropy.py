"""Cross-entropy from hidden states on, over chunks of the tokens, with its gradient taken where the chunk is.

The logits of a batch, tokens times vocabulary in float32, can be larger than all else in memory. Only one chunk's exist
at a time, only the gradients of hidden states and embedding are kept, and no product is computed twice: at 124M and
8 x 1,024 tokens all logits are 1.5 GiB in float32, and a chunk has at most 1 GiB. A small
model trains with 4 % more tokens a second than by the reference (TensorFlow, Zen 5, 2 cores, float32), and
with 2 % more on JAX (Xeon with AMX, 2 cores, float32).
"""

from functools import partial
from typing import Any

from keras import ops

from gpt2_trainer.configuration.training import MAX_LOGITS, count_chunks
from gpt2_trainer.kernels.primitives import product, row_sums, with_gradient
from gpt2_trainer.model.backend import compiled
from gpt2_trainer.model.gpt2 import mask_padding


def logits(hidden: Any, embedding: Any, vocabulary_size: int) -> Any:
    """See `gpt2.logits`; the embedding is read as its transpose without a copy."""
    embedding = ops.cast(embedding, hidden.dtype)
    return mask_padding(product(hidden, embedding, transpose_second=True), vocabulary_size)


def token_losses(
    hidden: Any, embedding: Any, targets: Any, vocabulary_size: int, *, max_logits: int = MAX_LOGITS
) -> tuple[Any, Any]:
    """See `gpt2.token_losses`; at most `max_logits` logits exist at a time."""
    losses_of = compiled(partial(_token_losses, vocabulary_size=vocabulary_size))
    embedding = ops.cast(embedding, hidden.dtype)
    chunks = count_chunks(hidden.shape[0], embedding.shape[0], max_logits)

    def chunk(tokens: tuple[Any, Any]) -> tuple[Any, Any]:
        results: tuple[Any, Any] = losses_of(product(tokens[0], embedding, transpose_second=True), tokens[1])
        return results

    if chunks == 1:
        return chunk((hidden, targets))
    losses, likeliest = ops.map(chunk, (_divided(hidden, chunks), _divided(targets, chunks)))
    return _joined(losses), _joined(likeliest)


def mean_loss(hidden: Any, embedding: Any, targets: Any, vocabulary_size: int, *, max_logits: int = MAX_LOGITS) -> Any:
    """See `gpt2.mean_loss`; at most `max_logits` logits exist at a time.

    The gradient of the logits is (softmax - one_hot(target)) / tokens. It is taken in the forward pass, and the
    backward pass scales what comes of it by the upstream gradient, a scalar.
    """
    tokens = hidden.shape[0]
    loss_and_slopes = compiled(partial(_loss_and_slopes, vocabulary_size=vocabulary_size, tokens=tokens))
    chunks = count_chunks(tokens, embedding.shape[0], max_logits)

    def chunk(embedding: Any, hidden: Any, targets: Any) -> tuple[Any, Any, Any]:
        loss, slopes = loss_and_slopes(product(hidden, embedding, transpose_second=True), targets)
        embedding_gradient = product(slopes, hidden, transpose_first=True)
        return loss, product(slopes, embedding), ops.cast(embedding_gradient, "float32")

    def all_chunks(hidden: Any, embedding: Any) -> tuple[Any, Any, Any]:
        if chunks == 1:
            return chunk(embedding, hidden, targets)
        divided = _divided(hidden, chunks), _divided(targets, chunks)

        def add(number: Any, sums: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            loss, hidden_gradient, embedding_gradient = chunk(
                embedding, *(ops.take(tensor, number, axis=0) for tensor in divided)
            )
            kept = ops.slice_update(sums[1], (number, 0, 0), hidden_gradient[None])
            return sums[0] + loss, kept, sums[2] + embedding_gradient

        zeros = ops.zeros((), "float32"), ops.zeros_like(divided[0]), ops.zeros(embedding.shape, "float32")
        loss, hidden_gradient, embedding_gradient = ops.fori_loop(0, chunks, add, zeros)
        return loss, _joined(hidden_gradient), embedding_gradient

    def forward(hidden: Any, embedding: Any) -> tuple[Any, Any]:
        loss, hidden_gradient, embedding_gradient = all_chunks(hidden, ops.cast(embedding, hidden.dtype))

        def gradient(upstream: Any) -> tuple[Any, Any]:
            return hidden_gradient * ops.cast(upstream, hidden_gradient.dtype), embedding_gradient * upstream

        return loss, gradient

    return with_gradient(forward)(hidden, embedding)


def _token_losses(products: Any, targets: Any, *, vocabulary_size: int) -> tuple[Any, Any]:
    """What `token_losses` returns, of products [tokens, rows]."""
    logits = mask_padding(products, vocabulary_size)
    losses, _, _ = _cross_entropy(logits, targets)
    return losses, ops.equal(ops.argmax(logits, axis=-1), ops.cast(targets, "int32"))


def _loss_and_slopes(products: Any, targets: Any, *, vocabulary_size: int, tokens: int) -> tuple[Any, Any]:
    """A chunk's part of the mean, float32 scalar, and its gradient by the products, in their shape and dtype."""
    losses, exponentials, total = _cross_entropy(mask_padding(products, vocabulary_size), targets)
    is_target = ops.arange(products.shape[-1]) == targets[:, None]
    # One division a token, not two a logit: 16 ms of a core, not 28 (TensorFlow, bfloat16, 1,024 x 8,192).
    slopes = exponentials * (1 / (total * tokens)) - ops.where(is_target, 1 / tokens, 0.0)
    return ops.sum(losses) / tokens, ops.cast(slopes, products.dtype)


def _cross_entropy(logits: Any, targets: Any) -> tuple[Any, Any, Any]:
    """Cross-entropy [tokens] of float32 logits [tokens, rows], and the softmax's numerators and denominators."""
    largest = ops.max(logits, axis=-1, keepdims=True)
    exponentials = ops.exp(logits - largest)
    total = row_sums(exponentials)
    wanted = ops.take_along_axis(logits, ops.cast(targets, "int32")[:, None], axis=-1)
    return (ops.log(total) + largest - wanted)[:, 0], exponentials, total


def _divided(tensor: Any, chunks: int) -> Any:
    """[tokens, ...] as [chunks, tokens of a chunk, ...]; each chunk has tokens of all devices that share a batch."""
    rows = ops.reshape(tensor, (tensor.shape[0] // chunks, chunks, *tensor.shape[1:]))
    return ops.swapaxes(rows, 0, 1)


def _joined(tensor: Any) -> Any:
    """The opposite of `_divided`."""
    return ops.reshape(ops.swapaxes(tensor, 0, 1), (-1, *tensor.shape[2:]))
