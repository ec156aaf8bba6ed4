"""A tokenizer's files: OpenAI's pair, Hugging Face's names for the same, and `tokenizer.json` made of either."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest
from gpt2_trainer.configuration.architecture import Architecture, whole_number
from gpt2_trainer.formats.json_files import read_json

END_TOKEN = "<|endoftext|>"
# OpenAI's names, then Hugging Face's, of the vocabulary and of the merges. Their contents are the same.
_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


def find_pair(folder: Path) -> tuple[Path, Path] | None:
    """Vocabulary and merges in a folder; None when it has neither. One may be missing."""
    pairs = [(folder / vocabulary, folder / merges) for vocabulary, merges in _PAIRS]
    # The first whole one, or else the first half one.
    there = sorted(pairs, key=lambda pair: -sum(path.is_file() for path in pair))[0]
    return there if any(path.is_file() for path in there) else None


def write_tokenizer(source: Path, target: Path, field: str) -> tuple[int, int] | None:
    """Writes the files of a tokenizer artifact (`tokenizer.json`, `encoder.json`, `vocab.bpe`).

    Args:
        source: Folder with a vocabulary and merges under OpenAI's or Hugging Face's names.
        target: Folder to write to.
        field: Field of the request that named the source, for errors.

    Returns:
        Id of the end token and the vocabulary's size; None, and nothing is written, when the source has no tokenizer.

    Raises:
        InvalidRequest: The files are no GPT-2 tokenizer.
    """
    pair = find_pair(source)
    if pair is None:
        return None
    if missing := [path for path in pair if not path.is_file()]:
        raise InvalidRequest([(field, f"{missing[0]} is missing, the other half of the tokenizer")])
    vocabulary, merges = _read_pair(pair, field)
    if END_TOKEN not in vocabulary:
        raise InvalidRequest([(field, f"{pair[0].name} has no token {END_TOKEN}, which ends documents")])
    try:
        tokenizer = build_tokenizer(vocabulary, merges)
    except Exception as error:
        raise InvalidRequest([(field, f"{pair[0].name} and {pair[1].name} do not fit together: {error}")]) from error
    tokenizer.save(str(target / "tokenizer.json"))
    shutil.copyfile(pair[0], target / "encoder.json")
    shutil.copyfile(pair[1], target / "vocab.bpe")
    return vocabulary[END_TOKEN], max(vocabulary.values()) + 1


def build_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """GPT-2's tokenizer: byte-level BPE, no space before the text, the end token as one special token."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    return tokenizer


def same_tokenizer(first: Path, second: Path) -> bool:
    """Whether the tokenizers in two folders give every text the same token ids."""
    return _model_of(first) == _model_of(second)


def check_tokenizer(folder: Path, architecture: Architecture, field: str) -> None:
    """Checks that a tokenizer goes with a model.

    Args:
        folder: Folder with a tokenizer artifact's files.
        architecture: The model's sizes.
        field: Field of the request that named the tokenizer, for errors.

    Raises:
        FailedPrecondition: Its vocabulary or its end token are not the model's.
        DataLoss: A file is missing or damaged.
    """
    missing = [name for name in ("tokenizer.json", *_PAIRS[0]) if not (folder / name).is_file()]
    if missing:
        raise DataLoss(f"{field}: the tokenizer has no {missing[0]}: make it again")
    (vocabulary, _), added = _model_of(folder)
    token_ids = {**vocabulary, **{content: token_id for token_id, content in added}}
    size, end = max(token_ids.values()) + 1, token_ids.get(END_TOKEN)
    if size != architecture.vocabulary_size or end != architecture.end_token_id:
        raise FailedPrecondition(
            f"{field}: the tokenizer has {size} tokens and {END_TOKEN} is token {end}; the model has "
            f"{architecture.vocabulary_size} and its end token is {architecture.end_token_id}: "
            "choose the tokenizer that the model was trained with"
        )


def _model_of(folder: Path) -> tuple[Any, Any]:
    try:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        model = content["model"]
        # Files of older versions have merges as `a b` instead of [a, b].
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        added = sorted((token["id"], token["content"]) for token in content["added_tokens"])
        return (model["vocab"], merges), added
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLoss(f"{folder / 'tokenizer.json'} is damaged ({error!r}): make the artifact again") from error


def _read_pair(pair: tuple[Path, Path], field: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    try:
        content = read_json(pair[0])
        vocabulary = {token: whole_number(content, token) for token in content}
        lines = pair[1].read_text("utf-8").split("\n")
        # The first line is a header; a merge's halves hold no spaces.
        merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines[1:] if line)]
    except (OSError, ValueError) as error:
        raise InvalidRequest([(field, f"{pair[0].name} or {pair[1].name} cannot be read: {error}")]) from error
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise InvalidRequest([(field, f"{pair[0].name} does not number its tokens from 0 without gaps")])
    return vocabulary, merges
