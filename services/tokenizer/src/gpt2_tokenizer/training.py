"""Trains a byte-level BPE vocabulary with GPT-2's pre-tokenisation. The same corpus gives the same vocabulary.

rustbpe counts and merges: the most frequent pair first and, among equals, the one of the lowest ids, so that neither
threads nor the order of documents change the result. What stays in memory is the count of each distinct part of the
pre-tokenisation. It knows no least frequency; a merge's frequency is how often its token comes out of the corpus when
only the merges up to it are applied, which falls from merge to merge, so the last one that is frequent enough is found
by halving.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush

import numpy as np
import rustbpe

from gpt2_common.vocabulary.byte_symbols import symbol_bytes, symbol_of_byte
from gpt2_common.vocabulary.vocabulary import END_TOKEN, Vocabulary
from gpt2_tokenizer.corpus.pieces import pieces
from gpt2_tokenizer.encoder import Encoder

LEAST_VOCABULARY = 257
LARGEST_VOCABULARY = 1_000_000
DEFAULT_VOCABULARY = 50_257
DEFAULT_MIN_FREQUENCY = 2

_BYTES = 256
_BATCH_CHARACTERS = 1 << 20
# As many go to rustbpe at once: 64 MiB of characters at the most.
_BATCH_PIECES = 1024
_PIECE_CHARACTERS = 1 << 16
_NEVER = LARGEST_VOCABULARY
_LONG_TOKEN = 200
# As much text goes to the slow encoder, which is there at once, before the fast one is made.
_SHORT_CHARACTERS = 1 << 18
# OpenAI, gpt-2/src/encoder.py. The parentheses match nothing else: rustbpe's regular expressions then search what is
# in them by one automaton, and go back and forth for the white space alone.
_PATTERN = r"(?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"


def train_vocabulary(
    texts: Callable[[], Iterable[str]], size: int, min_frequency: int, special_tokens: Sequence[str] = ()
) -> Vocabulary:
    """Trains a vocabulary.

    Args:
        texts: Gives the documents, the same ones each time. They are streamed, most often twice.
        size: Tokens wanted, the special ones included, 257 and one for each of `special_tokens` or more. A small corpus
            gives fewer.
        min_frequency: Times that a pair must occur to be merged.
        special_tokens: Tokens that stand for no text, besides the end token.

    Returns:
        A vocabulary numbered as OpenAI's: the bytes, then one token for each merge, the end token, then the others.
    """
    names = (END_TOKEN, *special_tokens)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(_pieces(texts()), size - len(names), _BATCH_PIECES, _PATTERN)
    symbols = symbol_of_byte()
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])
    # Two pairs can make the same bytes; the first one is the token.
    learned = list(dict.fromkeys(token.decode("latin-1").translate(symbols) for token, _ in ranks[_BYTES:]))
    return _of_frequent(_merges_of(learned), special_tokens, texts, min_frequency)


def _vocabulary(merges: Sequence[tuple[str, str]], special_tokens: Sequence[str]) -> Vocabulary:
    tokens = [*symbol_of_byte().values(), *(left + right for left, right in merges), END_TOKEN, *special_tokens]
    return Vocabulary.from_parts({token: index for index, token in enumerate(tokens)}, merges, special_tokens)


def _merges_of(learned: Sequence[str]) -> list[tuple[str, str]]:
    """The pair that each token was merged from: what the merges before it leave of its characters."""
    # The bytes come before all merges, and no two parts make one.
    ranks = dict.fromkeys(symbol_of_byte().values(), -1)
    merges: dict[str, tuple[str, str]] = {}
    for rank, token in enumerate(learned):
        merges[token] = _halves_of_long(token, ranks) if len(token) > _LONG_TOKEN else _halves(token, ranks, merges)
        ranks[token] = rank
    return list(merges.values())


def _halves(token: str, ranks: Mapping[str, int], merges: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """The two parts that merges leave of a token."""
    cuts = [cut for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
    # Whatever the merges leave is two tokens, so the last place is it where no other is.
    cut = next((cut for cut in cuts[:-1] if _stay_apart(token[:cut], token[cut:], ranks, merges)), cuts[-1])
    return token[:cut], token[cut:]


def _stay_apart(left: str, right: str, ranks: Mapping[str, int], merges: Mapping[str, tuple[str, str]]) -> bool:
    """Whether merges of the characters of two tokens leave the two.

    Goes back from them merge by merge, the latest first: at no time may what then met at their border have been merged
    before what was.
    """
    left_rank, right_rank = ranks[left], ranks[right]
    limit = _NEVER
    while ranks.get(left + right, _NEVER) >= limit:
        if left_rank > right_rank:
            limit = left_rank
            left = merges[left][1]
            left_rank = ranks[left]
        elif right_rank >= 0:
            # Of equal merges those further left come first.
            limit = right_rank + 1
            right = merges[right][0]
            right_rank = ranks[right]
        else:
            return True
    return False


def _halves_of_long(token: str, ranks: Mapping[str, int]) -> tuple[str, str]:
    """The same in the time of a sort, for tokens such as a megabyte of one letter; slower for short ones."""
    size = len(token)
    # Where the part that begins at a character ends, and where the one before it begins.
    ends = list(range(1, size + 1))
    before = list(range(-1, size - 1))
    waiting: list[tuple[int, int, int]] = []

    def consider(begin: int) -> None:
        middle = ends[begin]
        if middle < size and (rank := ranks.get(token[begin : ends[middle]])) is not None:
            heappush(waiting, (rank, begin, ends[middle]))

    for begin in range(size - 1):
        consider(begin)
    while waiting:
        _, begin, end = heappop(waiting)
        middle = ends[begin]
        # What has been merged since, on either side, is no such pair any more.
        if middle <= begin or middle >= size or ends[middle] != end:
            continue
        ends[begin], ends[middle] = end, 0
        if end < size:
            before[end] = begin
        if before[begin] >= 0:
            consider(before[begin])
        consider(begin)
    return token[: ends[0]], token[ends[0] :]


def _of_frequent(
    merges: Sequence[tuple[str, str]],
    special_tokens: Sequence[str],
    texts: Callable[[], Iterable[str]],
    least: int,
) -> Vocabulary:
    """The vocabulary of those merges, from the first on, whose pairs occur often enough."""
    vocabulary = _vocabulary(merges, special_tokens)
    if least <= 1 or not merges or _reaches(vocabulary, texts, least):
        return vocabulary
    right, wrong = 0, len(merges)
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if _reaches(_vocabulary(merges[:middle], special_tokens), texts, least):
            right = middle
        else:
            wrong = middle
    return _vocabulary(merges[:right], special_tokens)


def _reaches(vocabulary: Vocabulary, texts: Callable[[], Iterable[str]], least: int) -> bool:
    """Whether the last merge's token comes out of the texts often enough. Reads no further than it must."""
    token = _BYTES + len(vocabulary.merges) - 1
    token_bytes = symbol_bytes(vocabulary.tokens[token])
    encoder, is_fast = Encoder(vocabulary, fast=False), False
    count = characters = 0
    # It comes out of no text that does not hold its bytes.
    for batch in _batches(piece for piece in _pieces(texts()) if token_bytes in piece.encode()):
        if not is_fast and characters > _SHORT_CHARACTERS:
            encoder, is_fast = Encoder(vocabulary), True
        count += int(np.count_nonzero(encoder.encode_flat(batch)[0] == token))
        if count >= least:
            return True
        characters += sum(map(len, batch))
    return False


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    return (piece for text in texts for piece in pieces(text, _PIECE_CHARACTERS))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields pieces in batches that grow from one to a MiB, as most often the first few say enough."""
    batch: list[str] = []
    characters, wanted = 0, 1
    for piece in texts:
        batch.append(piece)
        characters += len(piece)
        if characters >= wanted:
            yield batch
            batch, characters, wanted = [], 0, min(2 * max(wanted, characters), _BATCH_CHARACTERS)
    if batch:
        yield batch
