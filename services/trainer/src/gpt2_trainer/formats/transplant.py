"""The transplant: a model's weights as the start of one with another tokenizer, by exchanging the rows of its tokens.

Rows of new tokens are means of their pieces' rows. WECHSEL (Minixhofer et al. 2022, arXiv 2112.06598) and CLP-Transfer
(Ostendorff and Rehm 2023, arXiv 2301.09626) choose better ones with a dictionary or a model of the other language.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from gpt2_common.errors import InvalidRequest
from gpt2_common.vocabulary.files import text_tokenizer
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.model.weights import Weights, has_vocabulary

_TEXT, _ADDED, _SPECIAL = "text", "added", "special"
_EQUALS = {_TEXT: (_TEXT, _ADDED), _ADDED: (_ADDED, _TEXT), _SPECIAL: (_SPECIAL,)}
"""Kinds of tokens that a token of each kind can equal, the first preferred."""
_ROWS = 4096
"""Rows that are computed at a time, so that the copies of their pieces stay small."""


@dataclass(frozen=True, slots=True)
class TokenMap:
    """For each token of a vocabulary, the tokens of another one that its row is the mean of."""

    pieces: NDArray[np.int64]
    """Ids in the other vocabulary, those of token 0 first."""
    starts: NDArray[np.int64]
    """Where each token's pieces begin, and the number of all pieces at the end; [tokens + 1]."""
    copied: int
    """Tokens that equal one of the other vocabulary; all others are averaged."""

    @property
    def averaged(self) -> int:
        """Tokens that equal none."""
        return len(self.starts) - 1 - self.copied


def map_tokens(source: Vocabulary, target: Vocabulary) -> TokenMap:
    """Finds what each token of a target becomes a mean of: the equal token of the source, or the source's pieces.

    Tokens are compared as bytes. The end token equals the end token, and another special token that of its name.
    """
    known = {(kind, text): token_id for token_id, (kind, text) in enumerate(_described(source))}
    pieces: list[list[int]] = []
    unknown: list[int] = []
    for token_id, (kind, text) in enumerate(_described(target)):
        equal = next((known[other, text] for other in _EQUALS[kind] if (other, text) in known), None)
        if equal is None:
            unknown.append(token_id)
        pieces.append([] if equal is None else [equal])
    # The names differ where one of the two is a relative of GPT-2.
    if target.end_token_id in unknown:
        unknown.remove(target.end_token_id)
    pieces[target.end_token_id] = [source.end_token_id]
    for token_id, found in zip(unknown, _encoded(source, target, unknown), strict=True):
        pieces[token_id] = found
    return TokenMap(
        pieces=np.array([piece for found in pieces for piece in found], np.int64),
        starts=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        copied=target.size - len(unknown),
    )


def transplant(
    architecture: Architecture, weights: Weights, tokens: TokenMap, end: int
) -> tuple[Architecture, Weights]:
    """Exchanges the rows of tokens, in the embedding and an untied head; positions and layers stay.

    Args:
        architecture: The model's sizes.
        weights: Its weights, the vocabulary exact.
        tokens: From its own vocabulary to the target.
        end: Id of the target's end token.

    Returns:
        Architecture and weights with the target's vocabulary.

    Raises:
        InvalidRequest: The vocabulary is too large for a model.
    """
    try:
        fitted = replace(architecture, vocabulary_size=len(tokens.starts) - 1, end_token_id=end)
    except ValueError as error:
        raise InvalidRequest([("target_tokenizer_uri", f"fits no model: {error}; use a smaller tokenizer")]) from error
    changed = {name: _means(value, tokens) if has_vocabulary(name) else value for name, value in weights.items()}
    return fitted, changed


def _described(vocabulary: Vocabulary) -> Iterator[tuple[str, bytes]]:
    """Kind and bytes of each token, in the order of ids."""
    special, added = (
        {vocabulary.tokens[vocabulary.end_token_id], *vocabulary.special_tokens},
        {*vocabulary.added_tokens},
    )
    for token, text in zip(vocabulary.tokens, vocabulary.bytes_of_ids(), strict=True):
        yield _SPECIAL if token in special else _ADDED if token in added else _TEXT, text


def _encoded(source: Vocabulary, target: Vocabulary, token_ids: list[int]) -> list[list[int]]:
    """Ids of the source for the bytes of each of the target's tokens.

    Text is encoded as in any document. A token that is no UTF-8, as it ends within a character, cannot be divided into
    words as text is: the merges apply to its bytes.
    """
    texts: list[str] = []
    encoder = text_tokenizer(source)
    # Without a pre-tokeniser, the model takes byte symbols as they are.
    merges = Tokenizer(models.BPE(vocab=source.ids, merges=list(source.merges)))
    all_bytes = target.bytes_of_ids()
    found: dict[int, list[int]] = {}
    decoded: list[int] = []
    for token_id in token_ids:
        try:
            texts.append(all_bytes[token_id].decode())
        except UnicodeDecodeError:
            found[token_id] = merges.encode(target.tokens[token_id], add_special_tokens=False).ids
        else:
            decoded.append(token_id)
    encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
    found |= {token_id: encoding.ids for token_id, encoding in zip(decoded, encodings, strict=True)}
    return [found[token_id] for token_id in token_ids]


def _means(matrix: NDArray[np.float32], tokens: TokenMap) -> NDArray[np.float32]:
    """The mean row of each token's pieces, float32 [tokens, width]; of a single piece, its row bit for bit.

    The mean is not scaled to the length of copied rows, though it is shorter: rows share a direction, which carries the
    level of all logits of a tied head. With the mean a new token's logit is the mean of its pieces' logits; a longer
    row would shift the level of averaged tokens against that of copied ones. Measured once (2 layers of 96, English to
    German, one seed), in bits per byte at first and after 250 steps: mean 3.79 and 2.58; scaled to the length of copied
    rows 4.93 and 2.62, only its difference from the mean of all rows scaled 4.02 and 2.59; random rows 3.83 and 2.63.
    """
    counts = np.diff(tokens.starts)
    means = np.empty((len(counts), matrix.shape[1]), np.float32)
    for first in range(0, len(counts), _ROWS):
        starts = tokens.starts[first : first + _ROWS + 1]
        # In float64 the sums of so few float32 are as good as exact.
        rows = matrix[tokens.pieces[starts[0] : starts[-1]]].astype(np.float64)
        sums = np.add.reduceat(rows, starts[:-1] - starts[0], axis=0)
        means[first : first + _ROWS] = sums / counts[first : first + _ROWS, None]
    return means
