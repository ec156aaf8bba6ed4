"""A vocabulary of byte-level BPE with an end token, and what makes it sound."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gpt2_common.vocabulary.byte_symbols import byte_of_symbol, symbol_bytes
from gpt2_contracts.tokenizer import END_TOKEN


class UnsoundVocabulary(ValueError):
    """Tokens and merges do not make a vocabulary; the message says why."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens and merges. Make it by `from_parts`, which checks it.

    Tokens are written in the characters of `byte_symbols`, as in OpenAI's files.
    """

    tokens: tuple[str, ...]
    """Token of each id, the special ones among them."""
    merges: tuple[tuple[str, str], ...]
    """Pairs of tokens that become one, the most urgent first."""
    end_token_id: int
    """Id of the token between documents, `<|endoftext|>` in GPT-2's."""
    special_tokens: tuple[str, ...] = ()
    """Further tokens that stand for no text and never come out of one, in the order of ids."""
    added_tokens: tuple[str, ...] = ()
    """Tokens written as they are that are split out of a text before it is encoded, in the order of ids."""

    @classmethod
    def from_parts(
        cls,
        ids: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        special_tokens: Collection[str] = (),
        *,
        added_tokens: Collection[str] = (),
        end_token: str = END_TOKEN,
    ) -> "Vocabulary":
        """Makes a vocabulary of the id of each token and the merges.

        Args:
            ids: Id of each token, the special ones among them.
            merges: The merges.
            special_tokens: Those tokens, besides the end token, that are no text.
            added_tokens: Those tokens that are split out of a text before it is encoded.
            end_token: The token between documents.

        Raises:
            UnsoundVocabulary: Ids have gaps, the end token, a special one or a byte is missing, a token is no bytes,
                a merge takes or makes what is no token of text, or a merge is there twice.
        """
        tokens = tuple(sorted(ids, key=ids.__getitem__))
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise UnsoundVocabulary(f"the ids of its {len(tokens)} tokens are not 0 to {len(tokens) - 1}, each once")
        if end_token not in ids:
            raise UnsoundVocabulary(f"it has no token {end_token}")
        special = [token for token in special_tokens if token != end_token]
        added = [token for token in added_tokens if token not in (end_token, *special)]
        missing = [token for token in special + added if token not in ids]
        if missing:
            raise UnsoundVocabulary(f"its special token {missing[0]!r} has no id")
        _check_bytes(ids, {end_token, *special}, added)
        _check_merges(ids, merges, {end_token, *special})
        ordered = [tuple(sorted(some, key=ids.__getitem__)) for some in (special, added)]
        return cls(tokens, tuple(merges), ids[end_token], *ordered)

    @property
    def end_token(self) -> str:
        """The token between documents."""
        return self.tokens[self.end_token_id]

    @property
    def size(self) -> int:
        """Tokens, the special ones included."""
        return len(self.tokens)

    @property
    def ids(self) -> dict[str, int]:
        """Id of each token, in the order of ids."""
        return {token: index for index, token in enumerate(self.tokens)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens and merges: equal fingerprints mean the same ids for every text."""
        parts = [self.tokens, self.merges, self.end_token_id]
        if self.special_tokens or self.added_tokens:
            parts.append(self.special_tokens)
        if self.added_tokens:
            parts.append(self.added_tokens)
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()

    def bytes_of_ids(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for; those of a special or added token are its name's."""
        special = {self.end_token, *self.special_tokens, *self.added_tokens}
        return tuple(token.encode() if token in special else symbol_bytes(token) for token in self.tokens)


def _check_bytes(ids: Mapping[str, int], special: Collection[str], added: Collection[str]) -> None:
    alphabet = byte_of_symbol()
    if wrong := [token for token in (*special, *added) if token in alphabet]:
        raise UnsoundVocabulary(f"its added token {wrong[0]!r} is a byte symbol, without which no text has tokens")
    missing = [symbol for symbol in alphabet if symbol not in ids]
    if missing:
        raise UnsoundVocabulary(f"{len(missing)} of the 256 byte symbols are no tokens, such as {missing[0]!r}")
    written = {*special, *added}
    text = [token for token in ids if token not in written]
    if "" in ids or set("".join(text)) - alphabet.keys():
        first = next(token for token in ("", *text) if token in ids and (not token or set(token) - alphabet.keys()))
        raise UnsoundVocabulary(f"the token {first!r} is not made of byte symbols, so it is not byte-level BPE")


def _check_merges(ids: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Collection[str]) -> None:
    if len(set(merges)) < len(merges):
        left, right = Counter(merges).most_common(1)[0][0]
        raise UnsoundVocabulary(f"the merge {left} {right} is there more than once, so its rank is not known")
    text = ids.keys() - special
    for number, (left, right) in enumerate(merges, start=1):
        made = left + right
        if left in text and right in text and made in text:
            continue
        wrong = next(token for token in (left, right, made) if token not in text)
        if wrong in special:
            raise UnsoundVocabulary(f"merge {number} ({left} {right}) makes {wrong} out of text, which no text may do")
        raise UnsoundVocabulary(f"merge {number} ({left} {right}) needs {wrong!r}, which is no token")
