"""Sequences of a held-out split: each token is a target once, and a document that fits is never cut.

Unlike the windows of a training's validation they start at documents, so that what a model is measured on does not
depend on where a tokenizer lets windows begin, and bits per byte compare between tokenizers.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpt2_trainer.training.data import TokenIds, TokenStream


class EvaluationSequences:
    """Whole documents in sequences, spread evenly over the split where not all are used.

    The input before a document's first token is the end token, as in generation.

    Args:
        stream: The split.
        end_token_id: The token that ends documents.
        context_length: Maximum number of tokens in a sequence.
        sequences: Sequences to use; None, or more than there are: all.
        batch_size: Sequences in a batch.
    """

    def __init__(
        self, stream: TokenStream, end_token_id: int, context_length: int, sequences: int | None, batch_size: int
    ) -> None:
        self._stream = stream
        self._end_token_id = end_token_id
        self._context_length = context_length
        self._batch_size = batch_size
        spans = list(cut_spans(stream.document_ends(end_token_id).tolist(), context_length))
        count = min(sequences or len(spans), len(spans))
        self._spans = [spans[number * len(spans) // count] for number in range(count)]

    @property
    def sequences(self) -> int:
        """Sequences in use."""
        return len(self._spans)

    def batches(self) -> Iterator[tuple[TokenIds, TokenIds, NDArray[np.bool_], int]]:
        """Inputs, targets, which of the targets count, each [batch_size, context_length], and how many rows do."""
        shape = (self._batch_size, self._context_length)
        for first in range(0, len(self._spans), self._batch_size):
            inputs, targets = (np.full(shape, self._end_token_id, np.int32) for _ in range(2))
            counted = np.zeros(shape, np.bool_)
            spans = self._spans[first : first + self._batch_size]
            for row, (start, stop) in enumerate(spans):
                tokens = self._stream.read(start, stop - start)
                targets[row, : len(tokens)] = tokens
                inputs[row, 1 : len(tokens)] = tokens[:-1]
                if start:
                    inputs[row, :1] = self._stream.read(start - 1, 1)
                counted[row, : len(tokens)] = True
            yield inputs, targets, counted, len(spans)


def cut_spans(ends: list[int], length: int) -> Iterator[tuple[int, int]]:
    """Cuts documents into sequences: start and stop of each in the stream.

    Args:
        ends: Where each document ends, in order.
        length: Maximum tokens in a sequence. Only a longer document is cut, each time after so many tokens.
    """
    start = stop = 0
    for end in ends:
        if end - start > length and stop > start:
            yield start, stop
            start = stop
        while end - start > length:
            yield start, start + length
            start += length
        stop = end
    if stop > start:
        yield start, stop
