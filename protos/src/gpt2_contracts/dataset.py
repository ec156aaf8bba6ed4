"""The dataset artifact: token shards of two splits, `dataset.json`, and the files of the tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

from gpt2_contracts.artifact import JsonFile

TRAIN, VALIDATION = SPLITS = ("train", "validation")

INDEXED: Mapping[str, type] = MappingProxyType(
    {"tokens": int, "train_tokens": int, "validation_tokens": int, "documents": int}
)
"""Counts and properties that pipelines keep in their metadata."""


def shard_name(split: str, index: int) -> str:
    """File name of a shard, counted from 0: a one-dimensional NumPy array of token ids."""
    return f"{split}-{index:05d}.npy"


def shard_pattern(split: str) -> str:
    """Matches the shards of a split; sorted by name they are in the order of the documents."""
    return f"{split}-*.npy"


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSize:
    """What a split holds."""

    tokens: int
    """End tokens after documents included."""
    documents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetDescription(JsonFile):
    """The content of `dataset.json`."""

    FILE: ClassVar[str] = "dataset.json"
    REMEDY: ClassVar[str] = "encode the corpus again"
    ASCII: ClassVar[bool] = True

    vocabulary_size: int
    end_token: str = ""
    """Empty in datasets from before it was recorded."""
    end_token_id: int
    dtype: str = "uint16"
    """NumPy's name of the shards' type."""
    train: SplitSize
    validation: SplitSize
    split_hash: str = ""
    """Name of the hash that assigns documents to splits."""
    tokenizer_digest: str
    """Digest of the tokenizer artifact."""
    tokenizer_fingerprint: str = ""
    corpus_digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """See JsonFile."""
        return {
            "vocabulary_size": self.vocabulary_size,
            "end_token": self.end_token,
            "end_token_id": self.end_token_id,
            "dtype": self.dtype,
            TRAIN: {"tokens": self.train.tokens, "documents": self.train.documents},
            VALIDATION: {"tokens": self.validation.tokens, "documents": self.validation.documents},
            "split_hash": self.split_hash,
            "tokenizer_digest": self.tokenizer_digest,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "corpus_digest": self.corpus_digest,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See JsonFile."""
        train, validation = (
            SplitSize(tokens=int(content[split]["tokens"]), documents=int(content[split].get("documents", 0)))
            for split in SPLITS
        )
        return cls(
            vocabulary_size=int(content["vocabulary_size"]),
            end_token=str(content.get("end_token", "")),
            end_token_id=int(content["end_token_id"]),
            dtype=str(content.get("dtype", "uint16")),
            train=train,
            validation=validation,
            split_hash=str(content.get("split_hash", "")),
            tokenizer_digest=str(content["tokenizer_digest"]),
            tokenizer_fingerprint=str(content.get("tokenizer_fingerprint", "")),
            corpus_digest=str(content.get("corpus_digest", "")),
        )

    def to_counts(self) -> dict[str, float]:
        """The manifest's counts."""
        return {
            "tokens": self.train.tokens + self.validation.tokens,
            "train_tokens": self.train.tokens,
            "validation_tokens": self.validation.tokens,
            "documents": self.train.documents + self.validation.documents,
        }

    def to_properties(self) -> dict[str, str]:
        """The manifest's properties."""
        return {"tokenizer_fingerprint": self.tokenizer_fingerprint}
