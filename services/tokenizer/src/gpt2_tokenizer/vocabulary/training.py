"""Trains a byte-level BPE vocabulary with GPT-2's pre-tokenisation. The same corpus gives the same vocabulary.

BPE is Sennrich et al. 2016 ("Neural Machine Translation of Rare Words with Subword Units", section 3.2), on bytes as in
Radford et al. 2019 (GPT-2, section 2.2). rustbpe counts and merges in memory that grows with the distinct words.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush

import numpy as np
import rustbpe

from gpt2_common.vocabulary.byte_symbols import symbol_bytes, symbol_of_byte
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts.tokenizer import END_TOKEN
from gpt2_tokenizer.encoding.encoder import Encoder
from gpt2_tokenizer.encoding.pieces import pieces

DEFAULT_VOCABULARY = 50_257
DEFAULT_MIN_FREQUENCY = 2

_BYTES = 256
MIN_VOCABULARY = _BYTES + 1
"""Tokens of the smallest vocabulary: the bytes and the end token."""

_BATCH_CHARACTERS = 1 << 20
# Pieces per call to rustbpe: at most 64 Mi characters.
_BATCH_PIECES = 1024
_PIECE_CHARACTERS = 1 << 16
# Rank of a pair that is never merged, after all others.
_NEVER = 1 << 31
_LONG_TOKEN = 200
# Characters that the slow encoder, which opens at once, gets before the fast one is opened.
_SHORT_CHARACTERS = 1 << 18
# openai/gpt-2:src/encoder.py. The added parentheses change no match: with them the regular expressions of rustbpe
# search the group by one automaton, and backtrack for white space only.
_PATTERN = r"(?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"


def train_vocabulary(
    texts: Callable[[], Iterable[str]], size: int, min_frequency: int, special_tokens: Sequence[str] = ()
) -> Vocabulary:
    """Trains a vocabulary.

    Args:
        texts: Returns the documents, the same ones on each call. They are streamed, usually twice.
        size: Tokens of the vocabulary with the special ones, from 257 plus the number of `special_tokens`. A small
            corpus results in fewer.
        min_frequency: Minimum number of occurrences of a pair that is merged. Among equally frequent pairs that of the
            lowest ids is merged first, so that neither threads nor the order of documents affect the result.
        special_tokens: Tokens besides the end token that represent no text.

    Returns:
        A vocabulary numbered as OpenAI's: the bytes, one token per merge, the end token, the other special tokens.
    """
    names = (END_TOKEN, *special_tokens)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(_pieces(texts()), size - len(names), _BATCH_PIECES, _PATTERN)
    symbols = symbol_of_byte()
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])
    # Two pairs can result in the same bytes; the first one is the token.
    learned = list(dict.fromkeys(token.decode("latin-1").translate(symbols) for token, _ in ranks[_BYTES:]))
    return _limit_to_frequent(_merges_of(learned), special_tokens, texts, min_frequency)


def _vocabulary(merges: Sequence[tuple[str, str]], special_tokens: Sequence[str]) -> Vocabulary:
    tokens = [*symbol_of_byte().values(), *(left + right for left, right in merges), END_TOKEN, *special_tokens]
    return Vocabulary.from_parts({token: index for index, token in enumerate(tokens)}, merges, special_tokens)


def _merges_of(learned: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pair that each token was merged from: what the merges before it make of its characters."""
    # The bytes precede all merges, and no pair results in one.
    ranks = dict.fromkeys(symbol_of_byte().values(), -1)
    merges: dict[str, tuple[str, str]] = {}
    for rank, token in enumerate(learned):
        merges[token] = _split_long(token, ranks) if len(token) > _LONG_TOKEN else _split(token, ranks, merges)
        ranks[token] = rank
    return list(merges.values())


def _split(token: str, ranks: Mapping[str, int], merges: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Returns the two parts that the merges before a token make of its characters."""
    cuts = [cut for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
    # The merges leave exactly two tokens, so the last cut is right where no other one is.
    cut = next((cut for cut in cuts[:-1] if _stay_apart(token[:cut], token[cut:], ranks, merges)), cuts[-1])
    return token[:cut], token[cut:]


def _stay_apart(left: str, right: str, ranks: Mapping[str, int], merges: Mapping[str, tuple[str, str]]) -> bool:
    """Whether merging the characters of two adjacent tokens results in the two.

    Undoes the merges one by one, the latest first. At each step the pair at the border must rank after the merge that
    is undone, or it would have been merged instead.
    """
    left_rank, right_rank = ranks[left], ranks[right]
    limit = _NEVER
    while ranks.get(left + right, _NEVER) >= limit:
        if left_rank > right_rank:
            limit = left_rank
            left = merges[left][1]
            left_rank = ranks[left]
        elif right_rank >= 0:
            # Of equal merges the leftmost is applied first.
            limit = right_rank + 1
            right = merges[right][0]
            right_rank = ranks[right]
        else:
            return True
    return False


def _split_long(token: str, ranks: Mapping[str, int]) -> tuple[str, str]:
    """As `_split` in O(n log n) of its length, for tokens such as a megabyte of one letter; slower for short ones."""
    size = len(token)
    # A linked list of the parts: where the part at a character ends, and where the one before it begins.
    ends = list(range(1, size + 1))
    before = list(range(-1, size - 1))
    waiting: list[tuple[int, int, int]] = []

    def push(begin: int) -> None:
        middle = ends[begin]
        if middle < size and (rank := ranks.get(token[begin : ends[middle]])) is not None:
            heappush(waiting, (rank, begin, ends[middle]))

    for begin in range(size - 1):
        push(begin)
    while waiting:
        _, begin, end = heappop(waiting)
        middle = ends[begin]
        # One of the two parts has been merged since, so the pair no longer exists.
        if middle <= begin or middle >= size or ends[middle] != end:
            continue
        ends[begin], ends[middle] = end, 0
        if end < size:
            before[end] = begin
        if before[begin] >= 0:
            push(before[begin])
        push(begin)
    return token[: ends[0]], token[ends[0] :]


def _limit_to_frequent(
    merges: Sequence[tuple[str, str]],
    special_tokens: Sequence[str],
    texts: Callable[[], Iterable[str]],
    min_frequency: int,
) -> Vocabulary:
    """Returns the vocabulary of the first merges, as far as their pairs occur at least `min_frequency` times.

    rustbpe has no minimum frequency. The frequency of a merge is the count of its token in the corpus when only the
    merges up to it are applied. It decreases from merge to merge, so a binary search finds the last one.
    """
    vocabulary = _vocabulary(merges, special_tokens)
    if min_frequency <= 1 or not merges or _last_occurs(vocabulary, texts, min_frequency):
        return vocabulary
    frequent, rare = 0, len(merges)
    while rare - frequent > 1:
        middle = (frequent + rare) // 2
        if _last_occurs(_vocabulary(merges[:middle], special_tokens), texts, min_frequency):
            frequent = middle
        else:
            rare = middle
    return _vocabulary(merges[:frequent], special_tokens)


def _last_occurs(vocabulary: Vocabulary, texts: Callable[[], Iterable[str]], times: int) -> bool:
    """Whether the token of the last merge occurs so many times in the encoded texts. Reads no more than necessary."""
    token = _BYTES + len(vocabulary.merges) - 1
    token_bytes = symbol_bytes(vocabulary.tokens[token])
    encoder, is_fast = Encoder(vocabulary, fast=False), False
    count = characters = 0
    # It cannot occur in a text without its bytes.
    for batch in _batches(piece for piece in _pieces(texts()) if token_bytes in piece.encode()):
        if not is_fast and characters > _SHORT_CHARACTERS:
            encoder, is_fast = Encoder(vocabulary), True
        count += int(np.count_nonzero(encoder.encode_flat(batch)[0] == token))
        if count >= times:
            return True
        characters += sum(map(len, batch))
    return False


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    return (piece for text in texts for piece in pieces(text, _PIECE_CHARACTERS))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields pieces in batches that grow from one piece to 1 Mi characters: usually the first few are enough."""
    batch: list[str] = []
    characters, target = 0, 1
    for piece in texts:
        batch.append(piece)
        characters += len(piece)
        if characters >= target:
            yield batch
            batch, characters, target = [], 0, min(2 * max(target, characters), _BATCH_CHARACTERS)
    if batch:
        yield batch
