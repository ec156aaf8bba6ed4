"""Cross-entropy of next tokens from hidden states on, a part of the tokens at a time.

The scores of a batch, tokens times vocabulary in float32, can be greater than all else in memory. So they are made part
by part, and the gradient of each part is taken where the part is: what is kept are the gradients of the hidden states
and of the embedding alone, and no product is made twice. A batch whose scores are small is one part.
"""

from typing import Any

from keras import ops

from gpt2_trainer.model.backend import cross_entropy, product

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
    logits = ops.cast(product(hidden, embedding, transpose_second=True), "float32")
    rows = logits.shape[-1]
    return logits if size == rows else ops.where(ops.arange(rows) < size, logits, MASKED)


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

    def part(tokens: tuple[Any, Any]) -> tuple[Any, Any]:
        logits = scores(tokens[0], embedding, size)
        losses, _ = cross_entropy(logits, tokens[1])
        return losses, ops.equal(ops.argmax(logits, axis=-1), ops.cast(tokens[1], "int32"))

    if parts == 1:
        return part((hidden, targets))
    losses, hits = ops.map(part, (_divided(hidden, parts), _divided(targets, parts)))
    return _joined(losses), _joined(hits)


def mean_loss(hidden: Any, embedding: Any, targets: Any, size: int, parts: int) -> Any:
    """Mean cross-entropy, float32 scalar, with its gradient; as `token_results`, but the embedding is float32."""
    tokens = hidden.shape[0]

    def part(embedding: Any, hidden: Any, targets: Any) -> tuple[Any, Any, Any]:
        losses, slopes = cross_entropy(scores(hidden, embedding, size), targets)
        slopes = ops.cast(slopes / tokens, hidden.dtype)
        towards_embedding = product(slopes, hidden, transpose_first=True)
        return ops.sum(losses) / tokens, product(slopes, embedding), ops.cast(towards_embedding, "float32")

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

        def gradient(*arguments: Any, upstream: Any = None) -> tuple[Any, Any]:
            scale = arguments[0] if upstream is None else upstream
            return slopes * ops.cast(scale, slopes.dtype), towards * scale

        return loss, gradient

    return ops.custom_gradient(loss_of)(hidden, embedding)


def _divided(tensor: Any, parts: int) -> Any:
    """[tokens, ...] as [parts, tokens of a part, ...]; each part has tokens of all devices that share a batch."""
    rows = ops.reshape(tensor, (tensor.shape[0] // parts, parts, *tensor.shape[1:]))
    return ops.swapaxes(rows, 0, 1)


def _joined(tensor: Any) -> Any:
    """The opposite of `_divided`."""
    return ops.reshape(ops.swapaxes(tensor, 0, 1), (-1, *tensor.shape[2:]))
