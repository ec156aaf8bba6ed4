"""Penalties on logits by the tokens seen so far: `repetition_penalty` and `no_repeat_ngram_size` of `transformers`."""

from typing import Any

from keras import ops

from gpt2_trainer.generation.sampling import SamplingTensors
from gpt2_trainer.model.gpt2 import MASKED


def penalize(logits: Any, history: Any, length: Any, sampling: SamplingTensors) -> Any:
    """Logits after both penalties, the repetition penalty first.

    Args:
        logits: float32 [rows, vocabulary].
        history: int32 [rows, capacity], tokens of prompt and output.
        length: int32 scalar, tokens of `history` that count.
        sampling: `repetition_penalty` divides positive logits of seen tokens and multiplies negative ones (CTRL, Keskar
            et al. 2019); no sequence of `no_repeat_ngram_size` tokens occurs twice.

    Returns:
        float32 [rows, vocabulary]; banned tokens are MASKED.
    """
    penalty, ngram_size = sampling.repetition_penalty, sampling.no_repeat_ngram_size
    places = ops.arange(ops.shape(history)[1], dtype="int32")
    seen = _marked(history, ops.broadcast_to(places < length, ops.shape(history)), logits)
    penalized = ops.where(logits < 0, logits * penalty, logits / penalty)
    logits = ops.where(seen & (logits > MASKED / 2), penalized, logits)
    return ops.where(_marked(history, _completed(history, length, ngram_size), logits), MASKED, logits)


def _completed(history: Any, length: Any, size: Any) -> Any:
    """Which tokens, bool [rows, capacity], complete an n-gram that begins like the last `size` - 1 tokens."""
    capacity = ops.shape(history)[1]
    places = ops.arange(capacity, dtype="int32")
    is_on = (size > 0) & (size <= length)
    rows = ops.zeros_like(history) == 0
    first = rows & (places >= size - 1) & (places < length) & is_on

    def compare(back: Any, matches: Any) -> Any:
        """Compares the tokens `back` + 1 before each place with the one `back` before the end."""
        wanted = ops.take(history, ops.maximum(length - 1 - back, 0), axis=1)[:, None]
        # What wraps around belongs to places before `size` - 1, which are excluded already.
        return matches & (ops.take(history, (places - 1 - back) % capacity, axis=1) == wanted)

    return ops.fori_loop(0, ops.where(is_on, size - 1, 0), compare, first)


def _marked(history: Any, chosen: Any, logits: Any) -> Any:
    """Which tokens of the vocabulary, bool [rows, vocabulary], are at the chosen places of each row's history."""
    rows, size = ops.shape(logits)[0], ops.shape(logits)[1]
    numbers = ops.broadcast_to(ops.arange(rows, dtype="int32")[:, None], ops.shape(history))
    places = ops.stack([ops.reshape(numbers, (-1,)), ops.reshape(history, (-1,))], axis=1)
    counts = ops.scatter(places, ops.reshape(ops.cast(chosen, "int32"), (-1,)), (rows, size))
    return counts > 0
