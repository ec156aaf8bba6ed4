"""Padding of a checkpoint's vocabulary: rows of the token embedding beyond the tokenizer's tokens.

Tools pad the vocabulary to a round size (50,304 for 50,257 tokens). No text has the ids of these rows, so they are
removed; the logits of all tokens stay the same.
"""

from collections.abc import Callable
from dataclasses import replace

from gpt2_common.errors import InvalidRequest
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.model.weights import TOKEN_EMBEDDING, Weights, cut_vocabulary

MAX_PADDING = 1023
"""Rows that may be padding: tools round up to multiples of at most 1,024. With more, it is another tokenizer."""


def fit_vocabulary(
    architecture: Architecture,
    weights: Weights,
    tokenizer: tuple[int, int],
    field: str,
    warn: Callable[[str], None],
) -> tuple[Architecture, Weights]:
    """Cuts the vocabulary to the tokens of its tokenizer.

    Args:
        architecture: The model's sizes.
        weights: Its weights.
        tokenizer: Size of the tokenizer's vocabulary, special and added tokens included, and its end token, which
            the model gets where its own is cut off.
        field: Field of the request that named the model or the tokenizer, for errors.
        warn: Called with a sentence where something is cut.

    Returns:
        Architecture and weights, unchanged where nothing is cut.

    Raises:
        InvalidRequest: The tokenizer has more tokens, or so few that it is another model's.
    """
    fitted = fit_architecture(architecture, tokenizer, field, warn)
    return fitted, weights if fitted == architecture else cut_vocabulary(weights, fitted)


def fit_architecture(
    architecture: Architecture, tokenizer: tuple[int, int], field: str, warn: Callable[[str], None]
) -> Architecture:
    """The sizes that `fit_vocabulary` cuts a model to; its arguments and errors."""
    rows, (tokens, end_token_id) = architecture.vocabulary_size, tokenizer
    if tokens == rows:
        return architecture
    if problem := padding_problem(rows, tokens):
        raise InvalidRequest([(field, problem)])
    warn(f"{field}: the vocabulary of {rows} is padded beyond the tokenizer's {tokens} tokens: the padding is cut off")
    end = architecture.end_token_id if architecture.end_token_id < tokens else end_token_id
    return replace(architecture, vocabulary_size=tokens, end_token_id=end)


def padding_problem(rows: int, tokens: int) -> str | None:
    """Why a tokenizer does not fit a model of so many rows; None when the others are padding, or there are none."""
    sizes = f"the tokenizer has {tokens} tokens and the tensor {TOKEN_EMBEDDING} {rows} rows"
    if tokens > rows:
        return (
            f"{sizes}: use the tokenizer that the model was trained with, or give the model a row for each token "
            "(`resize_token_embeddings` of `transformers`) and train it on them"
        )
    if rows - tokens > MAX_PADDING:
        return (
            f"{sizes}, {rows - tokens} more, where padding is at most {MAX_PADDING}: they do not belong together; use "
            "the tokenizer that the model was trained with"
        )
    return None
