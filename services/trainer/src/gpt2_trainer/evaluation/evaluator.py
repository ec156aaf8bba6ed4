"""Perplexity and LAMBADA last-word accuracy of a model, in float32, a batch at a time."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from keras import ops
from numpy.typing import NDArray

from gpt2_contracts.metrics import BITS_PER_BYTE, LOSS, bits_per_byte, perplexity
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

    def perplexity(
        self,
        batches: Iterable[tuple[TokenIds, TokenIds, NDArray[np.bool_], int]],
        token_bytes: NDArray[np.int64] | None,
        progress: Progress,
    ) -> Mapping[str, float]:
        """Mean loss over all tokens in nats, its exponential, and in bits per byte.

        Args:
            batches: As `EvaluationSequences` makes them.
            token_bytes: Bytes of text of each token; None: not known, so that there are no bits per byte.
            progress: Called after each batch.
        """
        total, tokens, text, done = 0.0, 0, 0, 0
        for inputs, targets, counted, count in batches:
            losses, _ = self._token_losses(self._weights, inputs, targets)
            total += float(np.sum(np.asarray(losses)[counted], dtype=np.float64))
            tokens += int(counted.sum())
            text += 0 if token_bytes is None else int(token_bytes[targets[counted]].sum())
            done += count
            progress(done)
        loss = total / tokens
        metrics = {LOSS: loss, "perplexity": perplexity(loss), "tokens": tokens}
        return {**metrics, BITS_PER_BYTE: bits_per_byte(loss, text / tokens)} if text else metrics

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
