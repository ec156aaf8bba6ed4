"""LAMBADA (Paperno et al. 2016): texts whose last word a model predicts, as JSON lines with `text`.

The last word is what follows the last space, and is encoded with that space. It is predicted correctly when each of its
tokens is the likeliest one after the tokens before it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2_common.errors import InvalidRequest

_MIN_LENGTH = 32


@dataclass(frozen=True, slots=True)
class LastWord:
    """Token ids of one text, and how many of them at the end are its last word."""

    token_ids: tuple[int, ...]
    word_tokens: int


def read_lambada(lines: Iterable[str], encode: Callable[[str], list[int]], n_ctx: int, field: str) -> list[LastWord]:
    """Reads the texts.

    Args:
        lines: Lines of the file; empty ones are skipped.
        encode: Token ids of a text.
        n_ctx: Longest context of the model; of a longer text the end counts.
        field: Field of the request that named the file, for errors.

    Raises:
        InvalidRequest: A line is no JSON object with a `text` of at least two words; the message has its number.
    """
    words = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                words.append(_last_word(json.loads(line), encode, n_ctx))
            except ValueError as error:
                raise InvalidRequest([(field, f"line {number}: {error}")]) from error
    if not words:
        raise InvalidRequest([(field, "the file has no line")])
    return words


def _last_word(content: object, encode: Callable[[str], list[int]], n_ctx: int) -> LastWord:
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str):
        raise ValueError('must be a JSON object with a string "text"')
    context, _, word = text.strip().rpartition(" ")
    if not context.strip():
        raise ValueError('"text" must have at least two words, with a space before the last one')
    before, after = encode(context), encode(" " + word)
    if len(after) > n_ctx:
        raise ValueError(f"the last word has {len(after)} tokens, more than the model's context of {n_ctx}")
    return LastWord(tuple([*before, *after][-n_ctx - 1 :]), len(after))


def batched(words: list[LastWord], size: int, n_ctx: int) -> Iterable[tuple[NDArray[np.int32], NDArray[np.bool_], int]]:
    """Batches of texts of like length, so that little is padding and few shapes are compiled.

    Yields:
        Token ids int32 [size, length + 1] filled up with 0; bool [size, length], the targets in the last word; and
        how many rows count.
    """
    ordered = sorted(words, key=lambda word: len(word.token_ids))
    for first in range(0, len(ordered), size):
        rows = ordered[first : first + size]
        longest = len(rows[-1].token_ids) - 1
        length = min(max(_MIN_LENGTH, 1 << (longest - 1).bit_length()), n_ctx)
        token_ids = np.zeros((size, length + 1), np.int32)
        is_word = np.zeros((size, length), np.bool_)
        for row, word in enumerate(rows):
            end = len(word.token_ids)
            token_ids[row, :end] = word.token_ids
            is_word[row, end - 1 - word.word_tokens : end - 1] = True
        yield token_ids, is_word, len(rows)
