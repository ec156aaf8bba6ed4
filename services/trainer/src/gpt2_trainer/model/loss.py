"""Cross-entropy of next tokens from hidden states on, a part of the tokens at a time.

The scores of a batch, tokens times vocabulary in float32, can be greater than all else in memory. So they are made part
by part, and the gradient of each part is taken where the part is: what is kept are the gradients of the hidden states
and of the embedding alone, and no product is made twice. A batch whose scores are small is one part. XLA compiles what
is between the products, wherever it is called from: scores are read as they are, and their gradient is written once.
"""

from functools import partial
from typing import Any

from keras import ops

from gpt2_trainer.model.backend import compiled, product, row_sums, with_gradient

# Great enough that its exponential is 0 in float32 and bfloat16, small enough to be finite in both.
MASKED = -1e9


def scores(hidden: Any, embedding: Any, size: int) -> Any:
    """Scores of next tokens.

    Args:
        hidden: [..., width].
        embedding: [rows, width], of the same type.
        size: The exact vocabulary; rows beyond it are padding.

    Returns:
        float32 [..., rows]; those of padding are so low that their chance is 0.
    """
    return exact(product(hidden, embedding, transpose_second=True), size)


def token_results(hidden: Any, embedding: Any, targets: Any, size: int, parts: int) -> tuple[Any, Any]:
    """How well each token is foretold, not to be differentiated.

    Args:
        hidden: [tokens, width].
        embedding: [rows, width], of the same type.
        targets: int32 [tokens].
        size: The exact vocabulary.
        parts: Divides the tokens.

    Returns:
        float32 [tokens], cross-entropy in nats; bool [tokens], whether it is the likeliest one.
    """
    losses_and_hits = compiled(partial(_losses_and_hits, size=size))

    def part(tokens: tuple[Any, Any]) -> tuple[Any, Any]:
        results: tuple[Any, Any] = losses_and_hits(product(tokens[0], embedding, transpose_second=True), tokens[1])
        return results

    if parts == 1:
        return part((hidden, targets))
    losses, hits = ops.map(part, (_divided(hidden, parts), _divided(targets, parts)))
    return _joined(losses), _joined(hits)


def mean_loss(hidden: Any, embedding: Any, targets: Any, size: int, parts: int) -> Any:
    """Mean cross-entropy, float32 scalar, with its gradient; as `token_results`, but the embedding is float32."""
    loss_and_slopes = compiled(partial(_loss_and_slopes, size=size, tokens=hidden.shape[0]))

    def part(embedding: Any, hidden: Any, targets: Any) -> tuple[Any, Any, Any]:
        loss, slopes = loss_and_slopes(product(hidden, embedding, transpose_second=True), targets)
        towards_embedding = product(slopes, hidden, transpose_first=True)
        return loss, product(slopes, embedding), ops.cast(towards_embedding, "float32")

    def all_parts(hidden: Any, embedding: Any) -> tuple[Any, Any, Any]:
        if parts == 1:
            return part(embedding, hidden, targets)
        divided = _divided(hidden, parts), _divided(targets, parts)

        def add(number: Any, sums: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            loss, slopes, towards = part(embedding, *(ops.take(tensor, number, axis=0) for tensor in divided))
            kept = ops.slice_update(sums[1], (number, 0, 0), slopes[None])
            return sums[0] + loss, kept, sums[2] + towards

        zeros = ops.zeros((), "float32"), ops.zeros_like(divided[0]), ops.zeros(embedding.shape, "float32")
        loss, slopes, towards = ops.fori_loop(0, parts, add, zeros)
        return loss, _joined(slopes), towards

    def loss_of(hidden: Any, embedding: Any) -> tuple[Any, Any]:
        loss, slopes, towards = all_parts(hidden, ops.cast(embedding, hidden.dtype))

        def gradient(upstream: Any) -> tuple[Any, Any]:
            return slopes * ops.cast(upstream, slopes.dtype), towards * upstream

        return loss, gradient

    return with_gradient(loss_of)(hidden, embedding)


def exact(products: Any, size: int) -> Any:
    """Scores in float32, padding masked, of products [..., rows] in any type."""
    logits = ops.cast(products, "float32")
    rows = logits.shape[-1]
    return logits if size == rows else ops.where(ops.arange(rows) < size, logits, MASKED)


def _losses_and_hits(products: Any, targets: Any, *, size: int) -> tuple[Any, Any]:
    """What `token_results` returns, of products [tokens, rows]."""
    logits = exact(products, size)
    losses, _, _ = _cross_entropy(logits, targets)
    return losses, ops.equal(ops.argmax(logits, axis=-1), ops.cast(targets, "int32"))


def _loss_and_slopes(products: Any, targets: Any, *, size: int, tokens: int) -> tuple[Any, Any]:
    """The part of a mean over so many tokens, float32 scalar, and its gradient, of the products' type and shape."""
    losses, exponentials, total = _cross_entropy(exact(products, size), targets)
    is_target = ops.arange(products.shape[-1]) == targets[:, None]
    slopes = (exponentials / total - ops.cast(is_target, "float32")) / tokens
    return ops.sum(losses) / tokens, ops.cast(slopes, products.dtype)


def _cross_entropy(logits: Any, targets: Any) -> tuple[Any, Any, Any]:
    """Cross-entropy of float32 [tokens, rows] in nats.

    Returns:
        [tokens]; exponentials [tokens, rows] and their sums [tokens, 1], whose ratios are the chances.
    """
    greatest = ops.max(logits, axis=-1, keepdims=True)
    exponentials = ops.exp(logits - greatest)
    total = row_sums(exponentials)
    wanted = ops.take_along_axis(logits, ops.cast(targets, "int32")[:, None], axis=-1)
    return (ops.log(total) + greatest - wanted)[:, 0], exponentials, total


def _divided(tensor: Any, parts: int) -> Any:
    """[tokens, ...] as [parts, tokens of a part, ...]; each part has tokens of all devices that share a batch."""
    rows = ops.reshape(tensor, (tensor.shape[0] // parts, parts, *tensor.shape[1:]))
    return ops.swapaxes(rows, 0, 1)


def _joined(tensor: Any) -> Any:
    """The opposite of `_divided`."""
    return ops.reshape(ops.swapaxes(tensor, 0, 1), (-1, *tensor.shape[2:]))
