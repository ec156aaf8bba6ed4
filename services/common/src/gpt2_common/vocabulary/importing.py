"""Imports other tools' tokenizers where they are GPT-2's kind: any other one would encode wrongly."""

import json
import re
from collections.abc import Mapping
from typing import Any

from gpt2_common.artifacts.roots import filesystem_of
from gpt2_common.errors import FailedPrecondition, NotFound
from gpt2_common.hub import lfs_problem
from gpt2_common.vocabulary.files import checked_ids, parse_pair
from gpt2_common.vocabulary.vocabulary import UnsoundVocabulary, Vocabulary
from gpt2_contracts.tokenizer import (
    CONFIG_FILE,
    ENCODER_FILE,
    END_TOKEN,
    HUGGINGFACE_ENCODER_FILE,
    HUGGINGFACE_MERGES_FILE,
    MERGES_FILE,
    TOKENIZER_FILE,
)

_PAIRS = ((ENCODER_FILE, MERGES_FILE), (HUGGINGFACE_ENCODER_FILE, HUGGINGFACE_MERGES_FILE))
_CONFIG, _ADDED, _SPECIAL_MAP = CONFIG_FILE, "added_tokens.json", "special_tokens_map.json"
_MODEL_CONFIG = "config.json"
_OTHER_KINDS = ("vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SPECIAL = re.compile(r"<.+>|\[.+\]")
_MAX_FILE_BYTES = 256 << 20

TOKENIZER_FILES = frozenset(
    {
        TOKENIZER_FILE,
        _CONFIG,
        _ADDED,
        _SPECIAL_MAP,
        _MODEL_CONFIG,
        *_OTHER_KINDS,
        *(name for pair in _PAIRS for name in pair),
    }
)
"""Names of the files of a folder that say what its tokenizer is."""


def import_vocabulary(uri: str) -> Vocabulary:
    """Reads a folder with OpenAI's pair, the same as `vocab.json` and `merges.txt`, or a `tokenizer.json`.

    Args:
        uri: The folder, already checked against the allowed roots.

    Raises:
        NotFound: None of these files is there.
        FailedPrecondition: They are no byte-level BPE with GPT-2's pre-tokenisation, or do not fit together.
    """
    try:
        vocabulary = parse_vocabulary(read_vocabulary_files(uri))
    except UnsoundVocabulary as error:
        raise FailedPrecondition(f"uri: {uri} cannot be imported: {error}") from error
    if vocabulary is None:
        raise NotFound(
            f"uri: {uri} has neither {ENCODER_FILE} and {MERGES_FILE}, nor vocab.json and merges.txt, nor "
            f"{TOKENIZER_FILE}: name the folder that holds them",
            uri=uri,
        )
    return vocabulary


def parse_vocabulary(files: Mapping[str, bytes]) -> Vocabulary | None:
    """Reads the vocabulary that a folder's tokenizer files hold.

    Args:
        files: Content of each file, by name.

    Returns:
        The vocabulary; None when no file is a tokenizer's.

    Raises:
        UnsoundVocabulary: They are no byte-level BPE with GPT-2's pre-tokenisation, or do not fit together.
    """
    texts = {name: _decoded(name, content) for name, content in files.items() if name not in _OTHER_KINDS}
    if _CONFIG in texts:
        _require_plain_config(_parse_json(_CONFIG, texts[_CONFIG]))
    complete = _parse_tokenizer(texts[TOKENIZER_FILE]) if TOKENIZER_FILE in texts else None
    for encoder, merges in _PAIRS:
        if encoder in texts and merges in texts:
            if complete is not None:
                _require_gpt2_kind(complete)
            added, in_text = _added(complete) if complete is not None else _added_beside(texts)
            try:
                ids = {**added, **checked_ids(_parse_json(encoder, texts[encoder]))}
                end = _end_token(texts, ids, added)
                pair = texts[encoder], texts[merges], added
                return _require_whole(parse_pair(*pair, in_text=in_text, end_token=end))
            except UnsoundVocabulary as error:
                raise UnsoundVocabulary(f"{encoder} and {merges}: {error}") from error
    if complete is not None:
        return _require_whole(_parse_complete(complete, texts))
    for encoder, merges in _PAIRS:
        if encoder in texts or merges in texts:
            missing = merges if encoder in texts else encoder
            raise UnsoundVocabulary(f"{missing} is missing, the other half of the tokenizer")
    if other := next((name for name in _OTHER_KINDS if name in files), None):
        raise UnsoundVocabulary(f"its tokenizer is {other} (WordPiece or SentencePiece), not byte-level BPE as GPT-2's")
    return None


def _parse_complete(content: Mapping[str, Any], texts: Mapping[str, str]) -> Vocabulary:
    """Reads a vocabulary from the content of a `tokenizer.json` and the files beside it."""
    _require_gpt2_kind(content)
    model = content["model"]
    added, in_text = _added(content)
    ids = {**checked_ids(model.get("vocab")), **added}
    special = [token for token in added if token not in in_text]
    merges = [_merge(item) for item in model.get("merges") or []]
    end = _end_token(texts, ids, added)
    return Vocabulary.from_parts(ids, merges, special, added_tokens=in_text, end_token=end)


def _end_token(texts: Mapping[str, str], ids: Mapping[str, int], added: Mapping[str, int]) -> str:
    """The token between documents: what the files name, else GPT-2's.

    A model's `config.json` counts where its `eos_token_id` is of a special token: many keep that of the model that
    they were copied from.
    """
    for name in (_CONFIG, _SPECIAL_MAP):
        value = _parse_json(name, texts.get(name, "{}")).get("eos_token")
        named = value.get("content") if isinstance(value, dict) else value
        if isinstance(named, str) and named:
            if named not in ids:
                raise UnsoundVocabulary(f"its end token {named!r}, the eos_token of {name}, has no id")
            return named
    try:
        index = _parse_json(_MODEL_CONFIG, texts.get(_MODEL_CONFIG, "{}")).get("eos_token_id")
    except UnsoundVocabulary:
        # Who reads the model says what is wrong with it.
        index = None
    found = next((token for token, number in ids.items() if number == index), None) if type(index) is int else None
    if found is not None and (found in added or _SPECIAL.fullmatch(found)):
        return found
    if END_TOKEN not in ids:
        raise UnsoundVocabulary(f"it has no token {END_TOKEN} and names no other end token: set eos_token in {_CONFIG}")
    return END_TOKEN


def _require_whole(vocabulary: Vocabulary) -> Vocabulary:
    """Raises UnsoundVocabulary when there are words that no merge makes, as where the file of merges was cut off."""
    made = {left + right for left, right in vocabulary.merges}
    made |= {vocabulary.end_token, *vocabulary.special_tokens, *vocabulary.added_tokens}
    # A pair does not say which tokens are special; they are mostly written like this.
    lost = [
        token for token in vocabulary.tokens if len(token) > 1 and token not in made and not _SPECIAL.fullmatch(token)
    ]
    if lost:
        raise UnsoundVocabulary(
            f"no merge makes {len(lost)} of its tokens, such as {lost[0]!r}: the merges are cut off, or another's"
        )
    return vocabulary


def _added(content: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """The tokens that it adds, with their ids, and those of them that are split out of texts: all but special ones."""
    found: dict[str, int] = {}
    in_text = []
    for added in content.get("added_tokens") or []:
        if not isinstance(added, dict) or not isinstance(added.get("content"), str) or type(added.get("id")) is not int:
            raise UnsoundVocabulary(f"an added token has no content or no id: {str(added)[:80]}")
        if added["content"] != END_TOKEN and not added.get("special"):
            _require_plain_token(added)
            in_text.append(added["content"])
        found[added["content"]] = added["id"]
    return found, in_text


def _require_plain_token(added: Mapping[str, Any]) -> None:
    """Raises UnsoundVocabulary when a token that is split out of texts takes more of them than its own characters."""
    for option in ("lstrip", "rstrip", "single_word"):
        if added.get(option):
            raise UnsoundVocabulary(
                f"it adds the token {added['content']!r} with {option}, with which texts could not be restored"
            )


def _added_beside(texts: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """As `_added`, of the tokens that the files beside a pair add, with their ids, as `transformers` saves them."""
    config = _parse_json(_CONFIG, texts.get(_CONFIG, "{}"))
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict) and decoder:
        tokens = [{"id": _as_id(index), **token} for index, token in decoder.items() if isinstance(token, dict)]
        return _added({"added_tokens": tokens})
    named = {**_parse_json(_SPECIAL_MAP, texts.get(_SPECIAL_MAP, "{}")), **config}
    special = set(named.get("additional_special_tokens") or []) if _is_texts(named) else set()
    for name, value in named.items():
        if name.endswith("_token"):
            special.add(value.get("content") if isinstance(value, dict) else value)
    tokens = [
        {"id": index, "content": token, "special": token in special or _SPECIAL.fullmatch(token)}
        for token, index in _parse_json(_ADDED, texts.get(_ADDED, "{}")).items()
    ]
    return _added({"added_tokens": tokens})


def _is_texts(named: Mapping[str, Any]) -> bool:
    tokens = named.get("additional_special_tokens")
    return isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)


def _as_id(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _require_plain_config(config: Mapping[str, Any]) -> None:
    """Raises UnsoundVocabulary when a `tokenizer_config.json` makes `transformers` encode otherwise than GPT-2."""
    if config.get("add_prefix_space") is True:
        raise UnsoundVocabulary(f"{_CONFIG} adds a space before each text (add_prefix_space), which GPT-2's does not")
    if config.get("add_bos_token") is True:
        raise UnsoundVocabulary(f"{_CONFIG} adds tokens to each text (add_bos_token), which GPT-2's does not")


def _merge(item: Any) -> tuple[str, str]:
    """One merge, which older files write as one string and newer ones as two."""
    parts = item.split(" ") if isinstance(item, str) else item
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise UnsoundVocabulary(f"a merge is not two tokens: {str(item)[:80]!r}")
    return parts[0], parts[1]


def _require_gpt2_kind(content: Mapping[str, Any]) -> None:
    """Raises UnsoundVocabulary when a `tokenizer.json` encodes otherwise than GPT-2 with the same vocabulary."""
    model = content.get("model") or {}
    added = [token.get("content") for token in content.get("added_tokens") or [] if isinstance(token, dict)]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise UnsoundVocabulary(f"its model is {model.get('type')}, not byte-level BPE")
    for option in ("byte_fallback", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        # A byte always has a token, so that the unknown one is never used.
        harmless = option == "unk_token" and model.get(option) in (END_TOKEN, *added)
        if model.get(option) and not harmless:
            raise UnsoundVocabulary(f"its model has {option}, which GPT-2's has not")
    if model.get("ignore_merges"):
        raise UnsoundVocabulary("its model ignores merges for whole words, which GPT-2's does not")
    if content.get("normalizer"):
        raise UnsoundVocabulary("it changes texts before it encodes them (normalizer), so they could not be restored")
    splitter = content.get("pre_tokenizer") or {}
    if splitter.get("type") == "Sequence" and len(splitter.get("pretokenizers") or []) == 1:
        [splitter] = splitter["pretokenizers"]
    if splitter.get("type") != "ByteLevel" or not splitter.get("use_regex", True):
        raise UnsoundVocabulary("its pre-tokenisation is not GPT-2's (ByteLevel with its regular expression)")
    if splitter.get("add_prefix_space"):
        raise UnsoundVocabulary("it adds a space before each text (add_prefix_space), which GPT-2's does not")
    if (content.get("post_processor") or {}).get("type", "ByteLevel") != "ByteLevel":
        raise UnsoundVocabulary("it adds tokens to each text (post_processor), which GPT-2's does not")


def _decoded(name: str, content: bytes) -> str:
    if problem := lfs_problem(name, content):
        raise UnsoundVocabulary(problem)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnsoundVocabulary(f"{name} is no UTF-8 ({error})") from error


def _parse_json(name: str, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsoundVocabulary(f"{name} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsoundVocabulary(f"{name} is no JSON object")
    return content


def _parse_tokenizer(text: str) -> Mapping[str, Any]:
    content = _parse_json(TOKENIZER_FILE, text)
    if not _has_sound_parts(content):
        raise UnsoundVocabulary(f"{TOKENIZER_FILE} is not what the tokenizers library writes")
    return content


def _has_sound_parts(content: Mapping[str, Any]) -> bool:
    objects = [content.get(name) or {} for name in ("model", "normalizer", "pre_tokenizer", "post_processor")]
    if not all(isinstance(part, dict) for part in objects):
        return False
    return all(isinstance(part or [], list) for part in (content.get("added_tokens"), objects[0].get("merges")))


def read_vocabulary_files(uri: str) -> dict[str, bytes]:
    """Content of each tokenizer file of a folder, by name. A `.json` file itself is a `tokenizer.json`.

    Raises:
        NotFound: The folder cannot be read.
        FailedPrecondition: A file is too large to be a tokenizer's.
    """
    filesystem, root = filesystem_of(uri)
    try:
        if root.endswith(".json") and filesystem.isfile(root):
            present = {TOKENIZER_FILE: root}
        else:
            present = {
                name: f"{root}/{name}" for name in sorted(TOKENIZER_FILES) if filesystem.isfile(f"{root}/{name}")
            }
    except OSError as error:
        raise NotFound(f"uri: {uri} cannot be looked into ({error}): name another folder", uri=uri) from error
    for name, path in present.items():
        if filesystem.size(path) > _MAX_FILE_BYTES:
            raise FailedPrecondition(
                f"uri: {uri}/{name} is larger than {_MAX_FILE_BYTES >> 20} MiB: it is no tokenizer's"
            )
    return {name: filesystem.cat_file(path) for name, path in present.items()}
