"""Measures a model on one backend of Keras: float32, a batch at a time."""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from keras import ops

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.evaluation.last_words import LastWord, batched
from gpt2_trainer.model.backend import compiled
from gpt2_trainer.model.network import Network
from gpt2_trainer.model.weights import Weights, pad_vocabulary
from gpt2_trainer.training.data import TokenIds

_GREATEST_EXPONENT = 700.0

Progress = Callable[[int], None]
"""Told after each batch how many sequences are done; may raise to stop."""


class Evaluator:
    """A model in memory.

    Args:
        architecture: Sizes.
        weights: Weights by name, the vocabulary exact.
        batch_size: Sequences at a time.
    """

    def __init__(self, architecture: Architecture, weights: Weights, batch_size: int) -> None:
        self._n_ctx = architecture.layers.n_ctx
        padded = pad_vocabulary(weights, architecture)
        self._weights = {name: ops.convert_to_tensor(value) for name, value in padded.items()}
        self._results = compiled(Network(architecture=architecture).token_results)
        self._batch_size = batch_size

    def perplexity(self, batches: Iterable[tuple[TokenIds, TokenIds, int]], progress: Progress) -> Mapping[str, float]:
        """Loss in nats a token, and its exponential, over batches as `ValidationData` makes them."""
        total, tokens, done = 0.0, 0, 0
        for inputs, targets, count in batches:
            losses, _ = self._results(self._weights, inputs, targets)
            total += float(np.sum(np.asarray(losses)[:count], dtype=np.float64))
            tokens += count * targets.shape[1]
            done += count
            progress(done)
        loss = total / tokens
        return {"loss": loss, "perplexity": math.exp(min(loss, _GREATEST_EXPONENT)), "tokens": tokens}

    def last_words(self, words: list[LastWord], progress: Progress) -> Mapping[str, float]:
        """Share of the last words that are guessed, and the exponential of their mean loss, a word."""
        right, total, done = 0, 0.0, 0
        for token_ids, is_word, count in batched(words, self._batch_size, self._n_ctx):
            inputs, targets = (np.ascontiguousarray(part) for part in (token_ids[:, :-1], token_ids[:, 1:]))
            losses, hits = (np.asarray(result) for result in self._results(self._weights, inputs, targets))
            right += int(np.sum(np.asarray(np.all(hits | ~is_word, axis=1))[:count]))
            total += float(np.sum(losses[is_word], dtype=np.float64))
            done += count
            progress(done)
        perplexity = math.exp(min(total / len(words), _GREATEST_EXPONENT))
        return {"last_word_accuracy": right / len(words), "last_word_perplexity": perplexity, "last_words": len(words)}
