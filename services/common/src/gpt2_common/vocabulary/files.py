"""The tokenizer artifact: its files, which datasets, checkpoints and models carry too, written and read.

The tokenizer and the trainer both write it. What its manifest holds is gpt2_contracts.tokenizer.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from gpt2_common.artifacts import Artifact, ArtifactWriter
from gpt2_common.artifacts.manifest import sha256_of
from gpt2_common.errors import DataLoss
from gpt2_common.vocabulary.vocabulary import UnsoundVocabulary, Vocabulary
from gpt2_contracts import openai
from gpt2_contracts.tokenizer import (
    CONFIG_FILE,
    ENCODER_FILE,
    END_TOKEN,
    FILES,
    MERGES_FILE,
    TOKENIZER_FILE,
    TokenizerProperties,
)

_MERGES_HEADER = "#version: 0.2"


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes the files into a folder."""
    (folder / ENCODER_FILE).write_text(json.dumps(vocabulary.ids), encoding="utf-8")
    lines = [_MERGES_HEADER, *(f"{left} {right}" for left, right in vocabulary.merges)]
    (folder / MERGES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / TOKENIZER_FILE).write_text(_complete_tokenizer(vocabulary).to_str(), encoding="utf-8")
    if vocabulary.end_token != END_TOKEN:
        content = json.dumps(tokenizer_config(vocabulary.end_token), indent=2)
        (folder / CONFIG_FILE).write_text(content + "\n", encoding="utf-8")


def commit_vocabulary(writer: ArtifactWriter, vocabulary: Vocabulary, source: str | None = None) -> Artifact:
    """Writes a vocabulary's files and commits the artifact.

    Args:
        writer: Writer of an artifact of kind `tokenizer`.
        vocabulary: What to write.
        source: Where an imported vocabulary is from.
    """
    write_vocabulary(vocabulary, writer.folder)
    digests = openai.TOKENIZER_SHA256.items()
    is_openai = all(sha256_of(writer.folder / name) == digest for name, digest in digests)
    described = TokenizerProperties(
        vocabulary=vocabulary.size,
        fingerprint=vocabulary.fingerprint,
        end_token=vocabulary.end_token,
        end_token_id=vocabulary.end_token_id,
        special_tokens=vocabulary.special_tokens,
        added_tokens=vocabulary.added_tokens,
        origin=openai.TOKENIZER_NAME if is_openai else "",
        source=source,
    )
    return writer.commit(described.to_counts(), described.to_properties())


def copy_vocabulary_files(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer artifact, without its manifest, into a folder."""
    for name in (*FILES, *([CONFIG_FILE] if (source / CONFIG_FILE).is_file() else [])):
        shutil.copyfile(source / name, target / name)


def tokenizer_config(end_token: str) -> dict[str, object]:
    """The content of a `tokenizer_config.json`, by which `transformers` knows the kind and the end token."""
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": end_token,
        "eos_token": end_token,
        "unk_token": end_token,
        "clean_up_tokenization_spaces": False,
    }


def read_end_token(folder: Path) -> str:
    """The end token of the tokenizer whose files are in a folder. Raises OSError or ValueError when it is damaged."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return END_TOKEN
    content = json.loads(path.read_text(encoding="utf-8"))
    end_token = content.get("eos_token") if isinstance(content, dict) else None
    if not isinstance(end_token, str):
        raise ValueError(f"{CONFIG_FILE} names no eos_token")
    return end_token


def read_vocabulary(artifact: Artifact) -> Vocabulary:
    """Reads the vocabulary of a tokenizer artifact. Raises DataLoss when its `tokenizer.json` is damaged."""
    try:
        # It alone says everything; the pair is for other tools.
        content = json.loads((artifact.folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        model = content["model"]
        return Vocabulary.from_parts(
            checked_ids(model["vocab"]),
            [(left, right) for left, right in model["merges"]],
            [token["content"] for token in content["added_tokens"] if token["special"]],
            added_tokens=[token["content"] for token in content["added_tokens"] if not token["special"]],
            end_token=read_end_token(artifact.folder),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataLoss(f"{artifact.uri} holds no sound vocabulary ({error}): make the tokenizer again") from error


def parse_pair(
    encoder: str,
    merges: str,
    added: Mapping[str, int] = MappingProxyType({}),
    *,
    in_text: Collection[str] = (),
    end_token: str = END_TOKEN,
) -> Vocabulary:
    """Reads a vocabulary from the text of OpenAI's pair.

    Args:
        encoder: JSON object of the id of each token (`encoder.json` or `vocab.json`).
        merges: One merge a line, two tokens with a space between (`vocab.bpe` or `merges.txt`).
        added: Added tokens with their ids, which the pair does not say.
        in_text: Those of them that are split out of texts; the others are special.
        end_token: The token between documents.

    Raises:
        UnsoundVocabulary: They are no such files, or do not fit together.
    """
    try:
        ids = json.loads(encoder)
    except (ValueError, RecursionError) as error:
        raise UnsoundVocabulary(f"the file of tokens is no JSON: {error}") from error
    special = [token for token in added if token not in in_text]
    parts = {**added, **checked_ids(ids)}, _parse_merges(merges), special
    return Vocabulary.from_parts(*parts, added_tokens=in_text, end_token=end_token)


def checked_ids(ids: object) -> dict[str, int]:
    """Returns what JSON gave when it is an object of integers. Raises UnsoundVocabulary otherwise."""
    if not isinstance(ids, dict) or not all(type(index) is int for index in ids.values()):
        raise UnsoundVocabulary("the tokens are not a JSON object that gives each its id")
    return ids


def text_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """An encoder of text alone.

    Added tokens that are no special ones are split out of a text first, as `tokenizers` does. No other token is made
    known to it. So `<|endoftext|>` in a text is text: the pre-tokeniser takes it apart (`<|`, `endoftext`, `|>`), and
    no merge crosses such parts. Where its caller asks for special tokens, an end token stands after each text: it comes
    from a template, whatever the text holds.
    """
    model = models.BPE(vocab=vocabulary.ids, merges=list(vocabulary.merges))
    tokenizer = _text_tokenizer(model, vocabulary.end_token_id)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in vocabulary.added_tokens])
    return tokenizer


def text_tokenizer_json(vocabulary: Vocabulary) -> str:
    """The `tokenizer.json` of `text_tokenizer` but for added tokens, in less time: no whole tokenizer is made.

    Each merge is one string, as older files have it: fastokens opens that a quarter faster than pairs.
    """
    content = json.loads(_text_tokenizer(models.BPE(), vocabulary.end_token_id).to_str())
    content["model"]["vocab"] = vocabulary.ids
    content["model"]["merges"] = [f"{left} {right}" for left, right in vocabulary.merges]
    return json.dumps(content, ensure_ascii=False)


def _text_tokenizer(model: models.BPE, end_token_id: int) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", END_TOKEN], special_tokens=[(END_TOKEN, end_token_id)]
    )
    return tokenizer


def _complete_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """What `tokenizer.json` holds: the same with the special tokens, which `tokenizers` finds in texts."""
    tokenizer = text_tokenizer(vocabulary)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = sorted((vocabulary.end_token, *vocabulary.special_tokens), key=vocabulary.ids.__getitem__)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _parse_merges(text: str) -> list[tuple[str, str]]:
    lines = text.replace("\r\n", "\n").split("\n")
    begin = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[begin:], start=begin + 1):
        if not line:
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise UnsoundVocabulary(
                f"line {number} of the merges is not two tokens with a space between: {line[:80]!r}"
            )
        merges.append((parts[0], parts[1]))
    return merges
