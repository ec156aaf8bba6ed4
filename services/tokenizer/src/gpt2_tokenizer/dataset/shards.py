"""Writes the token shards of one split, `.npy` files that readers map into memory.

A shard ends with the document that fills it, so that the files depend on the documents alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_common.durable import part_of, replace_durable

TokenType = type[np.uint16] | type[np.uint32]

_UINT16_VALUES = 1 << 16


def token_type(vocabulary_size: int) -> TokenType:
    """The smallest type that holds every id: uint16 up to 65,536 tokens, else uint32."""
    return np.uint16 if vocabulary_size <= _UINT16_VALUES else np.uint32


def shard_name(split: str, index: int) -> str:
    """File name of a shard, from 0."""
    return f"{split}-{index:05d}.npy"


@dataclass(slots=True)
class SplitState:
    """What the finished shards of a split hold."""

    shards: int = 0
    tokens: int = 0
    documents: int = 0
    next_document: int = 0
    """Number, in the corpus, of the first document that may belong to the next shard."""

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        return asdict(self)


class SplitWriter:
    """Takes the documents of one split in the corpus' order and writes them in shards.

    Args:
        folder: Where the shards go.
        split: Name of the split.
        tokens: Type of the tokens.
        shard_bytes: Bytes of tokens that fill a shard.
        state: What is finished already; it is kept up to date.
    """

    def __init__(self, folder: Path, split: str, tokens: TokenType, shard_bytes: int, state: SplitState) -> None:
        self.state = state
        self._folder = folder
        self._split = split
        self._type = tokens
        self._target = max(1, shard_bytes // np.dtype(tokens).itemsize)
        self._waiting: list[npt.NDArray[np.uint16 | np.uint32]] = []
        self._waiting_tokens = 0
        self._last_document = -1

    @property
    def tokens(self) -> int:
        """Tokens so far, finished or not."""
        return self.state.tokens + self._waiting_tokens

    def add(self, number: int, token_ids: Sequence[int], end_token_id: int) -> bool:
        """Adds a document and the end token after it; returns whether that finished a shard.

        Args:
            number: The document's number in the corpus.
            token_ids: Its tokens.
            end_token_id: The end token.
        """
        self._waiting.append(np.array([*token_ids, end_token_id], self._type))
        self._waiting_tokens += len(token_ids) + 1
        self._last_document = number
        if self._waiting_tokens < self._target:
            return False
        self.finish_shard()
        return True

    def finish_shard(self) -> None:
        """Writes what waits, if anything, as a shard that is whole and on the disk."""
        if not self._waiting:
            return
        path = self._folder / shard_name(self._split, self.state.shards)
        write_tokens(path, np.concatenate(self._waiting))
        self.state.shards += 1
        self.state.tokens += self._waiting_tokens
        self.state.documents += len(self._waiting)
        self.state.next_document = self._last_document + 1
        self._waiting.clear()
        self._waiting_tokens = 0


def write_tokens(path: Path, tokens: npt.NDArray[np.uint16 | np.uint32]) -> None:
    """Writes a one-dimensional array of tokens; the file has its name only once it is whole and on the disk."""
    part = part_of(path)
    with part.open("wb") as file:
        np.save(file, tokens, allow_pickle=False)
    replace_durable(part, path)
