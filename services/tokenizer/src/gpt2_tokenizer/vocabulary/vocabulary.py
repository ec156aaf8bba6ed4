"""A vocabulary of byte-level BPE with GPT-2's end token, and what makes it sound."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpt2_tokenizer.vocabulary.byte_symbols import byte_of_symbol, symbol_bytes

END_TOKEN = "<|endoftext|>"


class UnsoundVocabulary(ValueError):
    """Tokens and merges do not make a vocabulary; the message says why."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens and merges. Make it by `from_parts`, which checks it.

    Tokens are written in the characters of `byte_symbols`, as in OpenAI's files.
    """

    tokens: tuple[str, ...]
    """Token of each id, the end token among them."""
    merges: tuple[tuple[str, str], ...]
    """Pairs of tokens that become one, the most urgent first."""
    end_token_id: int
    """Id of `<|endoftext|>`."""

    @classmethod
    def from_parts(cls, ids: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> "Vocabulary":
        """Makes a vocabulary of the id of each token and the merges.

        Raises:
            UnsoundVocabulary: Ids have gaps, the end token or a byte is missing, a token is no bytes, or a merge
                takes or makes what is no token.
        """
        tokens = tuple(sorted(ids, key=ids.__getitem__))
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise UnsoundVocabulary(f"the ids of its {len(tokens)} tokens are not 0 to {len(tokens) - 1}, each once")
        if END_TOKEN not in ids:
            raise UnsoundVocabulary(f"it has no token {END_TOKEN}")
        _check_bytes(ids)
        _check_merges(ids, merges)
        return cls(tokens, tuple(merges), ids[END_TOKEN])

    @property
    def size(self) -> int:
        """Tokens, the end token included."""
        return len(self.tokens)

    @property
    def ids(self) -> dict[str, int]:
        """Id of each token, in the order of ids."""
        return {token: index for index, token in enumerate(self.tokens)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens and merges: equal fingerprints mean the same ids for every text."""
        content = json.dumps([self.tokens, self.merges, self.end_token_id], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def bytes_of_ids(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for; those of the end token are its name's."""
        return tuple(END_TOKEN.encode() if token == END_TOKEN else symbol_bytes(token) for token in self.tokens)


def _check_bytes(ids: Mapping[str, int]) -> None:
    alphabet = byte_of_symbol()
    missing = [symbol for symbol in alphabet if symbol not in ids]
    if missing:
        raise UnsoundVocabulary(f"{len(missing)} of the 256 byte symbols are no tokens, such as {missing[0]!r}")
    for token in ids:
        if not token or any(character not in alphabet for character in token):
            raise UnsoundVocabulary(f"the token {token!r} is not made of byte symbols, so it is not byte-level BPE")


def _check_merges(ids: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
    for number, (left, right) in enumerate(merges, start=1):
        for token in (left, right, left + right):
            if token not in ids:
                raise UnsoundVocabulary(f"merge {number} ({left} {right}) needs {token!r}, which is no token")
        if left + right == END_TOKEN:
            raise UnsoundVocabulary(f"merge {number} makes {END_TOKEN} out of text, which no text may do")
