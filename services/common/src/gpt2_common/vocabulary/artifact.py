"""The tokenizer artifact: its files, counts and properties, whichever service writes it."""

import json
from collections.abc import Mapping
from types import MappingProxyType

from gpt2_common.artifacts import Artifact, ArtifactWriter
from gpt2_common.artifacts.manifest import sha256_of
from gpt2_common.vocabulary.files import ENCODER_FILE, MERGES_FILE, write_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary

TOKENIZER = "tokenizer"
"""Kind of the artifact, and name of the output."""
OPENAI = "openai-gpt2"
"""Name of OpenAI's GPT-2 tokenizer; all their sizes have the same one."""
OPENAI_SHA256: Mapping[str, str] = MappingProxyType(
    {
        ENCODER_FILE: "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        MERGES_FILE: "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    }
)


def commit_vocabulary(writer: ArtifactWriter, vocabulary: Vocabulary, source: str | None = None) -> Artifact:
    """Writes a vocabulary's files and commits the artifact.

    Args:
        writer: Writer of an artifact of kind `tokenizer`.
        vocabulary: What to write.
        source: Where an imported vocabulary is from.

    Returns:
        The artifact, with the count `vocabulary` and the properties `fingerprint`, `end_token`, `end_token_id`
        and, where they apply, `special_tokens`, `added_tokens`, `origin` and `source`.
    """
    write_vocabulary(vocabulary, writer.folder)
    properties = {
        "fingerprint": vocabulary.fingerprint,
        "end_token": vocabulary.end_token,
        "end_token_id": str(vocabulary.end_token_id),
    }
    if vocabulary.special_tokens:
        properties["special_tokens"] = json.dumps(vocabulary.special_tokens)
    if vocabulary.added_tokens:
        properties["added_tokens"] = json.dumps(vocabulary.added_tokens)
    if all(sha256_of(writer.folder / name) == digest for name, digest in OPENAI_SHA256.items()):
        properties["origin"] = OPENAI
    if source is not None:
        properties["source"] = source
    return writer.commit({"vocabulary": vocabulary.size}, properties)
