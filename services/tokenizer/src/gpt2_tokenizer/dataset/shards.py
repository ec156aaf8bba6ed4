"""Writes the token shards of one split: `.npy` files (NumPy format 1.0) that readers map into memory.

A shard ends with the document that fills it, so that the files depend on the documents alone. Tokens are appended to
the file as they arrive; its header has the same size for every number of them and is rewritten at the end.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2_common.durable import part_of, replace_durable
from gpt2_contracts.dataset import shard_name
from gpt2_tokenizer.dataset.blocks import Block, TokenArray, TokenType


@dataclass(slots=True)
class SplitState:
    """The finished shards of a split."""

    shards: int = 0
    tokens: int = 0
    documents: int = 0
    next_document: int = 0
    """Number, in the corpus, of the first document that may belong to the next shard."""

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        return asdict(self)


class SplitWriter:
    """Writes the documents of one split, in the order of the corpus, into shards.

    Args:
        folder: Folder of the shards.
        split: Name of the split.
        tokens: Type of the tokens.
        shard_bytes: Bytes of tokens that fill a shard.
        state: The finished shards; kept up to date.
        finish: Takes a completely written file and its place; renames it now or later.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        tokens: TokenType,
        shard_bytes: int,
        state: SplitState,
        finish: Callable[[Path, Path], None] = replace_durable,
    ) -> None:
        self.state = state
        self._finish = finish
        self._folder = folder
        self._split = split
        self._type = tokens
        self._target = max(1, shard_bytes // np.dtype(tokens).itemsize)
        self._file: BinaryIO | None = None
        self._tokens = 0
        self._documents = 0
        self._last_document = -1

    @property
    def tokens(self) -> int:
        """Tokens so far, in finished shards and in the current one."""
        return self.state.tokens + self._tokens

    def add(self, block: Block) -> bool:
        """Adds documents. Returns whether that finished a shard."""
        finished = False
        begin = token = 0
        while begin < len(block.numbers):
            room = self._target - self._tokens
            end = min(int(np.searchsorted(block.ends, token + room)) + 1, len(block.numbers))
            after = int(block.ends[end - 1])
            self._write(block.tokens[token:after], end - begin, int(block.numbers[end - 1]))
            begin, token = end, after
            if self._tokens >= self._target:
                self.finish_shard()
                finished = True
        return finished

    def finish_shard(self) -> None:
        """Finishes the current shard, if any."""
        if self._file is None:
            return
        path = self._path()
        self._file.seek(0)
        _write_header(self._file, self._type, self._tokens)
        self.close()
        self._finish(part_of(path), path)
        self.state.shards += 1
        self.state.tokens += self._tokens
        self.state.documents += self._documents
        self.state.next_document = self._last_document + 1
        self._tokens = self._documents = 0

    def close(self) -> None:
        """Closes the current file without finishing it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, tokens: TokenArray, documents: int, last_document: int) -> None:
        if self._file is None:
            self._file = part_of(self._path()).open("wb")
            _write_header(self._file, self._type, 0)
        self._file.write(tokens.astype(self._type, copy=False).data)
        self._tokens += len(tokens)
        self._documents += documents
        self._last_document = last_document

    def _path(self) -> Path:
        return self._folder / shard_name(self._split, self.state.shards)


def _write_header(file: BinaryIO, kind: TokenType, tokens: int) -> None:
    """Writes what `numpy.save` writes before the values."""
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(file, description)
