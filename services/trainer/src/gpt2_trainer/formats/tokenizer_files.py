"""A tokenizer's files beside a model: which tokenizer they are, and whether it fits the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, NotFound
from gpt2_common.vocabulary.byte_symbols import symbol_bytes
from gpt2_common.vocabulary.files import read_end_token
from gpt2_common.vocabulary.importing import parse_vocabulary, read_vocabulary_files
from gpt2_common.vocabulary.vocabulary import UnsoundVocabulary, Vocabulary
from gpt2_contracts.tokenizer import FILES, TOKENIZER_FILE, TOKENIZER_FOLDER
from gpt2_trainer.configuration.architecture import Architecture


def read_tokenizer(folder: Path, field: str) -> Vocabulary | None:
    """Reads the tokenizer that a folder carries, as ImportTokenizer does.

    Args:
        folder: Folder with a tokenizer's files among others.
        field: Field of the request that named the folder, for errors.

    Returns:
        The vocabulary; None when the folder has no tokenizer's file.

    Raises:
        InvalidRequest: The files are no GPT-2 tokenizer.
    """
    try:
        return parse_vocabulary(read_vocabulary_files(folder.as_uri()))
    except (UnsoundVocabulary, FailedPrecondition, NotFound) as error:
        advice = "repair its files, or import a copy of the folder without them and name a tokenizer in tokenizer_uri"
        raise InvalidRequest([(field, f"the tokenizer of {folder} cannot be imported: {error}; {advice}")]) from error


def same_tokenizer(first: Path, second: Path) -> bool:
    """Whether the tokenizers in two folders give every text the same token ids."""
    return _model_of(first) == _model_of(second)


def check_tokenizer(folder: Path, architecture: Architecture, field: str) -> None:
    """Checks that a tokenizer fits a model.

    Args:
        folder: Folder with a tokenizer artifact's files.
        architecture: The model's sizes.
        field: Field of the request that named the tokenizer, for errors.

    Raises:
        FailedPrecondition: Its vocabulary or its end token are not the model's.
        DataLoss: A file is missing or damaged.
    """
    (size, end), end_token = tokenizer_size(folder, field), _end_token(folder, field)
    if size != architecture.vocabulary_size or end != architecture.end_token_id:
        raise FailedPrecondition(
            f"{field}: the tokenizer has {size} tokens and {end_token} is token {end}; the model has "
            f"{architecture.vocabulary_size} and its end token is {architecture.end_token_id}: "
            "choose the tokenizer that the model was trained with"
        )


def tokenizer_size(folder: Path, field: str) -> tuple[int, int | None]:
    """Tokens of a tokenizer artifact's vocabulary, added ones included, and the id of its end token.

    Raises:
        DataLoss: A file is missing or damaged.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataLoss(f"{field}: the tokenizer has no {missing[0]}: make it again")
    (vocabulary, _), added = _model_of(folder)
    token_ids = {**vocabulary, **{content: token_id for token_id, content, _ in added}}
    return max(token_ids.values()) + 1, token_ids.get(_end_token(folder, field))


def token_bytes(folder: Path, vocabulary_size: int) -> NDArray[np.int64]:
    """Bytes of text that each token stands for: 0 for special tokens, the end token among them.

    Args:
        folder: Folder with a tokenizer artifact's files.
        vocabulary_size: Length of the result; ids without a token have 0 bytes.

    Raises:
        DataLoss: A file is missing or damaged.
    """
    (vocabulary, _), added = _model_of(folder)
    texts = {content: 0 if special else len(content.encode()) for _, content, special in added}
    end_token = _end_token(folder, TOKENIZER_FOLDER)
    lengths = np.zeros(vocabulary_size, np.int64)
    try:
        for token, token_id in vocabulary.items():
            lengths[token_id] = 0 if token == end_token else texts.get(token, -1)
            if lengths[token_id] < 0:
                lengths[token_id] = len(symbol_bytes(token))
        for token_id, content, _ in added:
            lengths[token_id] = texts[content]
    except (KeyError, IndexError) as error:
        raise DataLoss(f"{folder / TOKENIZER_FILE} is damaged ({error!r}): make the artifact again") from error
    return lengths


def _end_token(folder: Path, field: str) -> str:
    try:
        return read_end_token(folder)
    except (OSError, ValueError) as error:
        raise DataLoss(f"{field}: the tokenizer is damaged ({error}): make it again") from error


def _model_of(folder: Path) -> tuple[Any, Any]:
    try:
        content = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        model = content["model"]
        # Files of older versions have merges as `a b` instead of [a, b].
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        added = sorted((token["id"], token["content"], bool(token.get("special"))) for token in content["added_tokens"])
        return (model["vocab"], merges), added
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLoss(f"{folder / TOKENIZER_FILE} is damaged ({error!r}): make the artifact again") from error
