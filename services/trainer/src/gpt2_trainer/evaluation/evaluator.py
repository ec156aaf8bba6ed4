"""Perplexity and LAMBADA last-word accuracy of a model, in float32, a batch at a time."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from keras import ops

from gpt2_contracts.metrics import perplexity
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.evaluation.lambada import LastWord, batched
from gpt2_trainer.kernels.selection import create_model
from gpt2_trainer.model.backend import compiled
from gpt2_trainer.model.weights import Weights, pad_vocabulary
from gpt2_trainer.training.data import TokenIds

Progress = Callable[[int], None]
"""Called after each batch with the number of sequences done; may raise to stop."""


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
        self._token_losses = compiled(create_model(architecture).token_losses)
        self._batch_size = batch_size

    def perplexity(self, batches: Iterable[tuple[TokenIds, TokenIds, int]], progress: Progress) -> Mapping[str, float]:
        """Loss in nats per token, and its exponential, over batches as `ValidationData` makes them."""
        total, tokens, done = 0.0, 0, 0
        for inputs, targets, count in batches:
            losses, _ = self._token_losses(self._weights, inputs, targets)
            total += float(np.sum(np.asarray(losses)[:count], dtype=np.float64))
            tokens += count * targets.shape[1]
            done += count
            progress(done)
        loss = total / tokens
        return {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}

    def lambada(self, words: list[LastWord], progress: Progress) -> Mapping[str, float]:
        """LAMBADA last-word accuracy, and the exponential of the mean loss per last word."""
        correct, total, done = 0, 0.0, 0
        for token_ids, is_word, count in batched(words, self._batch_size, self._n_ctx):
            inputs, targets = (np.ascontiguousarray(part) for part in (token_ids[:, :-1], token_ids[:, 1:]))
            losses, likeliest = (np.asarray(result) for result in self._token_losses(self._weights, inputs, targets))
            correct += int(np.sum(np.asarray(np.all(likeliest | ~is_word, axis=1))[:count]))
            total += float(np.sum(losses[is_word], dtype=np.float64))
            done += count
            progress(done)
        return {
            "lambada_accuracy": correct / len(words),
            "lambada_perplexity": perplexity(total / len(words)),
            "lambada_examples": len(words),
        }
