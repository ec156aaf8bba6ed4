"""Encodes texts into token ids and back, exactly as OpenAI's encoder does."""

from collections.abc import Sequence
from itertools import chain

from gpt2_tokenizer.corpus.pieces import pieces
from gpt2_tokenizer.vocabulary.files import text_tokenizer
from gpt2_tokenizer.vocabulary.vocabulary import Vocabulary


class Encoder:
    """Encodes and decodes by one vocabulary. Threads may share it.

    Args:
        vocabulary: The vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary_size = vocabulary.size
        self.end_token_id = vocabulary.end_token_id
        self._tokenizer = text_tokenizer(vocabulary)
        self._bytes = vocabulary.bytes_of_ids()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end token; `<|endoftext|>` in it is text like any other."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, on all cores."""
        cut = [list(pieces(text)) for text in texts]
        encoded = iter(self._tokenizer.encode_batch_fast(list(chain.from_iterable(cut)), add_special_tokens=False))
        return [list(chain.from_iterable(next(encoded).ids for _ in parts)) for parts in cut]

    def decode(self, token_ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for. Raises IndexError when one is not below `vocabulary_size`."""
        return b"".join([self._bytes[token_id] for token_id in token_ids])
