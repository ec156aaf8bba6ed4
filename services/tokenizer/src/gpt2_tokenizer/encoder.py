"""Encodes texts into token ids and back, exactly as OpenAI's encoder does."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_tokenizer.corpus.pieces import PIECE_CHARACTERS, pieces
from gpt2_tokenizer.engines import Offsets, Tokens, choose_engine

# Twice what a batch of documents is meant to have: they differ in length, and few batches are then taken apart.
_CALL_CHARACTERS = 1 << 21


class Encoder:
    """Encodes and decodes by one vocabulary. Threads may share it.

    Args:
        vocabulary: The vocabulary.
        fast: Whether the fast library may be used, where it is exact; the ids are the same either way.
    """

    def __init__(self, vocabulary: Vocabulary, *, fast: bool = True) -> None:
        self.vocabulary_size = vocabulary.size
        self.end_token_id = vocabulary.end_token_id
        self._engine = choose_engine(vocabulary, fast=fast)
        self._vocabulary = vocabulary

    @cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        return self._vocabulary.bytes_of_ids()

    @property
    def library(self) -> str:
        """Name of the library that encodes."""
        return self._engine.name

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end token; what the end token is called is text in it.

        Raises:
            UnicodeEncodeError: The text holds a lone surrogate, which no UTF-8 can.
        """
        ids: list[int] = self.encode_flat([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        ids, offsets = self.encode_flat(texts)
        return [ids[begin:end].tolist() for begin, end in pairwise(offsets)]

    def encode_flat(self, texts: Sequence[str], *, end_tokens: bool = False) -> tuple[Tokens, Offsets]:
        """Token ids of all texts, one after another.

        Long texts go to the library in pieces, about 2 MiB in one call, as its memory grows with what it has at once.

        Args:
            texts: Texts without lone surrogates.
            end_tokens: Whether an end token stands after each text, and counts as one of its ids.

        Returns:
            The ids, and offsets into them: those of text i are from offset i to offset i + 1.
        """
        sizes = list(map(len, texts))
        if max(sizes, default=0) <= PIECE_CHARACTERS and sum(sizes) <= _CALL_CHARACTERS:
            return self._engine.encode(texts, end_tokens=end_tokens)
        ids, offsets = self._encode_in_calls(texts)
        if not end_tokens:
            return ids, offsets
        ended: Tokens = np.insert(ids, offsets[1:], self.end_token_id)
        return ended, offsets + np.arange(len(offsets))

    def _encode_in_calls(self, texts: Sequence[str]) -> tuple[Tokens, Offsets]:
        counts = np.zeros(len(texts) + 1, np.int64)
        parts: list[Tokens] = []
        for group, owners in _calls(texts, self._vocabulary.added_tokens):
            ids, offsets = self._engine.encode(group)
            np.add.at(counts, np.add(owners, 1), np.diff(offsets))
            parts.append(ids)
        return (parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint32), *parts])), np.cumsum(counts)

    def decode(self, token_ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for. Raises IndexError when one is not below `vocabulary_size`."""
        return b"".join([self._bytes[token_id] for token_id in token_ids])


def _calls(texts: Sequence[str], whole: Sequence[str]) -> Iterator[tuple[list[str], npt.NDArray[np.int64]]]:
    """Yields pieces, each with the number of its text, as many as go to the library in one call."""
    group: list[str] = []
    owners: list[int] = []
    characters = 0
    for owner, piece in chain.from_iterable(
        ((n, piece) for piece in pieces(text, whole=whole)) for n, text in enumerate(texts)
    ):
        group.append(piece)
        owners.append(owner)
        characters += len(piece)
        if characters >= _CALL_CHARACTERS:
            yield group, np.array(owners, np.int64)
            group, owners, characters = [], [], 0
    if group:
        yield group, np.array(owners, np.int64)
