"""Encodes texts into token ids and back, exactly as OpenAI's encoder does."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from gpt2_common.artifacts import ArtifactStore
from gpt2_common.vocabulary.files import read_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts.artifact import TOKENIZER
from gpt2_tokenizer.encoding.engines import Offsets, Tokens, choose_engine
from gpt2_tokenizer.encoding.pieces import PIECE_CHARACTERS, pieces

# Twice the size that batches of documents aim at: as documents differ in length, few batches are then divided.
_CALL_CHARACTERS = 1 << 21
_MAX_CACHED = 4


class Encoder:
    """Encodes and decodes with one vocabulary. Threads may share it.

    Byte-level BPE as in Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners", section 2.2).

    Args:
        vocabulary: The vocabulary.
        fast: Whether the fast library may be used where it is exact; the ids are the same.
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
        """Returns the token ids of a text, without an end token; the name of the end token is plain text in it.

        Raises:
            UnicodeEncodeError: The text has a lone surrogate, which UTF-8 cannot express.
        """
        ids: list[int] = self.encode_flat([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text. Errors as `encode`."""
        ids, offsets = self.encode_flat(texts)
        return [ids[begin:end].tolist() for begin, end in pairwise(offsets)]

    def encode_flat(self, texts: Sequence[str], *, end_tokens: bool = False) -> tuple[Tokens, Offsets]:
        """Returns the token ids of all texts, one after another.

        Long texts go to the library in pieces, about 2 Mi characters per call, as its memory grows with a call.

        Args:
            texts: Texts without lone surrogates.
            end_tokens: Whether to add an end token after each text, as one of its ids.

        Returns:
            The ids, [tokens] uint32, and offsets into them, [texts + 1] int64: text i has those from offset i to offset
            i + 1.
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
        """Returns the bytes of token ids. Raises IndexError when one is not below `vocabulary_size`."""
        return b"".join([self._bytes[token_id] for token_id in token_ids])


class EncoderCache:
    """The encoders of the tokenizer artifacts used last, by the digest of their content. Threads may share it.

    Args:
        artifacts: The store to open tokenizers from.
    """

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._encoders: OrderedDict[str, Encoder] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, uri: str) -> Encoder:
        """Returns the encoder of a tokenizer artifact. Errors as ArtifactStore.open, naming `tokenizer_uri`."""
        _, manifest = self._artifacts.read_manifest("tokenizer_uri", uri, TOKENIZER)
        with self._lock:
            encoder = self._encoders.pop(manifest.digest, None)
            if encoder is None:
                encoder = Encoder(read_vocabulary(self._artifacts.open("tokenizer_uri", uri, TOKENIZER, verify=True)))
            self._encoders[manifest.digest] = encoder
            if len(self._encoders) > _MAX_CACHED:
                self._encoders.popitem(last=False)
            return encoder


def _calls(texts: Sequence[str], whole: Sequence[str]) -> Iterator[tuple[list[str], npt.NDArray[np.int64]]]:
    """Yields the pieces of one call to the library, and the index of the text of each."""
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
