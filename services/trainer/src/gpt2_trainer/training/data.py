"""Batches of a dataset artifact, each a pure function of the seed and the step.

A split is one stream of tokens in several memory-mapped shards. It is cut into windows of `context_length` + 1 tokens
that overlap by one, so that each token but the first is a target once an epoch.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2_common.errors import InvalidRequest
from gpt2_contracts.dataset import TRAIN, VALIDATION, shard_pattern
from gpt2_trainer.training.shuffle import permute

TokenIds = NDArray[np.int32]


class TokenStream:
    """One split of a dataset, read as one stream.

    Args:
        folder: Folder of the dataset.
        split: `train` or `validation`.
    """

    def __init__(self, folder: Path, split: str) -> None:
        paths = sorted(folder.glob(shard_pattern(split)))
        self._shards = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._shards else 0

    def document_ends(self, end_token_id: int) -> NDArray[np.int64]:
        """Where each document ends, in order; int64 [documents], the last one the length of the stream."""
        starts = [0, *self._ends[:-1].tolist()]
        found = [
            np.flatnonzero(shard == end_token_id) + start + 1 for shard, start in zip(self._shards, starts, strict=True)
        ]
        return np.union1d(np.concatenate([*found, np.zeros(0, np.int64)]).astype(np.int64), self._ends[-1:])

    def read(self, start: int, length: int) -> TokenIds:
        """Copies tokens, across shards where need be. int32 [length]; the range must lie in the stream."""
        tokens = np.empty(length, np.int32)
        filled = 0
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while filled < length:
            offset = start + filled - (int(self._ends[shard - 1]) if shard else 0)
            piece = self._shards[shard][offset : offset + length - filled]
            tokens[filled : filled + len(piece)] = piece
            filled += len(piece)
            shard += 1
        return tokens


class ShuffledDocuments:
    """A split whose documents come in another order each epoch, read as one stream.

    Args:
        stream: The split.
        end_token_id: The token that ends documents.
        seed: Seed of the orders.
    """

    def __init__(self, stream: TokenStream, end_token_id: int, seed: int) -> None:
        self._stream = stream
        self._seed = seed
        ends = stream.document_ends(end_token_id)
        self._starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        self._lengths = np.diff(ends, prepend=0)
        self._epoch = -1
        self._order, self._ends = self._starts, self._lengths

    def read(self, epoch: int, start: int, length: int) -> TokenIds:
        """Copies tokens of an epoch's stream. int32 [length]; the range must lie in the stream."""
        if epoch != self._epoch:
            documents = np.arange(len(self._starts), dtype=np.int64)
            self._order = permute(documents, len(documents), self._seed, epoch)
            self._ends = np.cumsum(self._lengths[self._order])
            self._epoch = epoch
        pieces: list[TokenIds] = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while length:
            document = self._order[number]
            left = int(self._ends[number]) - start
            place = int(self._starts[document] + self._lengths[document]) - left
            pieces.append(self._stream.read(place, min(left, length)))
            start, length, number = start + left, length - len(pieces[-1]), number + 1
        return np.concatenate(pieces)


class TrainingData:
    """Batches of the train split.

    Args:
        stream: The train split.
        context_length: Tokens in a sequence.
        batch_size: Sequences in a batch.
        seed: Seed of the order and of the noise.
        noise: Probability that an input token is replaced by a random one.
        vocabulary_size: Number of tokens that noise is drawn from.
        reshuffled_by: The token that ends documents, where their order changes from epoch to epoch; None: it does not.

    Raises:
        InvalidRequest: The split is shorter than one sequence.
    """

    def __init__(
        self,
        stream: TokenStream,
        context_length: int,
        batch_size: int,
        seed: int,
        noise: float,
        vocabulary_size: int,
        reshuffled_by: int | None = None,
    ) -> None:
        self._stream = stream
        self._documents = None if reshuffled_by is None else ShuffledDocuments(stream, reshuffled_by, seed)
        self._context_length = context_length
        self._batch_size = batch_size
        self._seed = seed
        self._noise = noise
        self._vocabulary_size = vocabulary_size
        self.windows = count_windows(stream, context_length, TRAIN)

    def batch(self, step: int, chosen_rows: NDArray[np.int64] | None = None) -> tuple[TokenIds, TokenIds]:
        """Inputs and targets of a step, counted from 0; each int32 [batch_size, context_length].

        Args:
            step: The step.
            chosen_rows: Rows of the batch to read, where other processes read the others; None: all.
        """
        numbers = np.arange(step * self._batch_size, (step + 1) * self._batch_size, dtype=np.int64)
        if chosen_rows is not None:
            numbers = numbers[chosen_rows]
        rows = np.empty((len(numbers), self._context_length + 1), np.int32)
        for epoch in np.unique(numbers // self.windows):
            chosen = numbers // self.windows == epoch
            windows = permute(numbers[chosen] % self.windows, self.windows, self._seed, int(epoch))
            for row, window in zip(np.flatnonzero(chosen), windows, strict=True):
                rows[row] = self._window(int(epoch), int(window))
        return self._disturb(rows[:, :-1], step, chosen_rows), np.ascontiguousarray(rows[:, 1:])

    def _window(self, epoch: int, window: int) -> TokenIds:
        start, length = window * self._context_length, self._context_length + 1
        return (
            self._stream.read(start, length) if self._documents is None else self._documents.read(epoch, start, length)
        )

    def _disturb(self, inputs: TokenIds, step: int, chosen_rows: NDArray[np.int64] | None) -> TokenIds:
        if not self._noise:
            return np.ascontiguousarray(inputs)
        # Drawn for the whole batch, so that a row's noise does not depend on who reads it.
        shape = (self._batch_size, self._context_length)
        random = np.random.Generator(np.random.Philox(key=[self._seed % 2**64, step]))
        replaced = random.random(shape) < self._noise
        other = random.integers(0, self._vocabulary_size, shape, dtype=np.int32)
        if chosen_rows is not None:
            replaced, other = replaced[chosen_rows], other[chosen_rows]
        return np.where(replaced, other, inputs)


class ValidationData:
    """The validation sequences: always the same ones, spread evenly over the validation split.

    Args:
        stream: The validation split.
        context_length: Tokens in a sequence.
        sequences: Sequences to use; all where the split has fewer.
        batch_size: Sequences in a batch.

    Raises:
        InvalidRequest: The split is shorter than one sequence.
    """

    def __init__(self, stream: TokenStream, context_length: int, sequences: int, batch_size: int) -> None:
        self._stream = stream
        self._context_length = context_length
        self._batch_size = batch_size
        windows = count_windows(stream, context_length, VALIDATION)
        count = min(sequences, windows)
        self._starts = [number * windows // count * context_length for number in range(count)]

    @property
    def sequences(self) -> int:
        """Sequences in use."""
        return len(self._starts)

    def bytes_per_token(self, token_bytes: NDArray[np.int64]) -> float:
        """Mean bytes of text of the targets, end tokens included, by the bytes of each token."""
        total = sum(
            int(token_bytes[self._stream.read(start + 1, self._context_length)].sum()) for start in self._starts
        )
        return total / (len(self._starts) * self._context_length)

    def batches(self) -> Iterator[tuple[TokenIds, TokenIds, int]]:
        """Inputs, targets (int32 [batch_size, context_length]) and how many of the rows count.

        The last batch is filled up with repeated rows, so that all have one shape and are compiled once.
        """
        for first in range(0, len(self._starts), self._batch_size):
            starts = self._starts[first : first + self._batch_size]
            filled = starts + [starts[0]] * (self._batch_size - len(starts))
            rows = np.stack([self._stream.read(start, self._context_length + 1) for start in filled])
            yield np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:]), len(starts)


def count_windows(stream: TokenStream, context_length: int, split: str) -> int:
    """Windows in a split. Raises InvalidRequest, with what would fit, when there is none."""
    if problems := too_short(len(stream), context_length, split):
        raise InvalidRequest(problems)
    return (len(stream) - 1) // context_length


def too_short(tokens: int, context_length: int, split: str) -> list[tuple[str, str]]:
    """The problem of a split that is too short for one sequence, with what would fit; empty when it is not."""
    if tokens > context_length:
        return []
    fits = f"a context_length of at most {tokens - 1} fits" if tokens > 1 else "no context_length fits"
    advice = " or encode it with a greater share for validation" if split == VALIDATION else ""
    return [
        (
            "config.context_length",
            f"the {split} split of the dataset has {tokens} tokens, and one sequence takes {context_length + 1}: "
            f"{fits}; choose that, use a larger corpus{advice}",
        )
    ]
