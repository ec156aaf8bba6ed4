"""The tokenizer artifact: names of its files, its end token, and what its manifest says of the vocabulary.

Datasets, checkpoints and models carry the same files.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

TOKENIZER_FOLDER = "tokenizer"
"""Folder with a tokenizer's files inside a dataset or a checkpoint."""

TOKENIZER_FILE = "tokenizer.json"
"""The whole tokenizer, as the `tokenizers` library writes it."""
ENCODER_FILE, MERGES_FILE = "encoder.json", "vocab.bpe"
"""The same as OpenAI's pair: id of each token, and merges."""
CONFIG_FILE = "tokenizer_config.json"
FILES = (TOKENIZER_FILE, ENCODER_FILE, MERGES_FILE)
"""What every tokenizer artifact holds. One whose end token is not GPT-2's has CONFIG_FILE too, which names it."""
HUGGINGFACE_ENCODER_FILE, HUGGINGFACE_MERGES_FILE = "vocab.json", "merges.txt"
"""Names of OpenAI's pair in Hugging Face's layout."""

END_TOKEN = "<|endoftext|>"
"""GPT-2's end token, which every vocabulary has that names no other one."""

INDEXED: Mapping[str, type] = MappingProxyType({"vocabulary": int, "fingerprint": str})
"""Counts and properties that pipelines keep in their metadata."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerProperties:
    """The manifest's properties and its count."""

    vocabulary: int
    """Tokens, special ones included."""
    fingerprint: str
    """SHA-256 of tokens and merges: equal fingerprints mean the same ids for every text."""
    end_token: str
    end_token_id: int
    special_tokens: tuple[str, ...] = ()
    added_tokens: tuple[str, ...] = ()
    origin: str = ""
    """Name of a published tokenizer that it equals; empty where it equals none."""
    source: str | None = None
    """Where an imported one is from; None for one that was trained."""

    def to_counts(self) -> dict[str, float]:
        """The manifest's counts."""
        return {"vocabulary": self.vocabulary}

    def to_properties(self) -> dict[str, str]:
        """The manifest's properties; those that do not apply are left out."""
        properties = {
            "fingerprint": self.fingerprint,
            "end_token": self.end_token,
            "end_token_id": str(self.end_token_id),
        }
        if self.special_tokens:
            properties["special_tokens"] = json.dumps(self.special_tokens)
        if self.added_tokens:
            properties["added_tokens"] = json.dumps(self.added_tokens)
        if self.origin:
            properties["origin"] = self.origin
        if self.source is not None:
            properties["source"] = self.source
        return properties
