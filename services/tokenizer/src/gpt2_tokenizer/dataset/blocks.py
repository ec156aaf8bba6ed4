"""Blocks: the encoded documents of a batch in one split. A block depends on its batch alone, wherever it is made."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpt2_contracts.dataset import SPLITS, VALIDATION
from gpt2_tokenizer.corpus.reading import Batch
from gpt2_tokenizer.corpus.selection import hash_fractions
from gpt2_tokenizer.encoding.encoder import Encoder

TokenType = type[np.uint16] | type[np.uint32]
TokenArray = npt.NDArray[np.uint16 | np.uint32]

_UINT16_VALUES = 1 << 16


def token_type(vocabulary_size: int) -> TokenType:
    """Returns the smallest type for all ids of a vocabulary: uint16 up to 65,536 tokens, else uint32."""
    return np.uint16 if vocabulary_size <= _UINT16_VALUES else np.uint32


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive documents of one split, encoded."""

    numbers: npt.NDArray[np.int64]
    """[documents]: number of each in the corpus, ascending."""
    ends: npt.NDArray[np.int64]
    """[documents]: index in `tokens` after the end token of each."""
    tokens: TokenArray
    """[tokens]: ids of the documents, with an end token after each."""


def encode_block(
    encoder: Encoder, batch: Batch, validation_fraction: float, begins: Mapping[str, int]
) -> dict[str, Block]:
    """Encodes the documents of a batch.

    Args:
        encoder: The encoder of the vocabulary.
        batch: The documents.
        validation_fraction: Fraction of texts for validation, over 0 and under 1.
        begins: Number of the first document that each split still needs; the ones before are left out.

    Returns:
        The documents of each split, in the batch's order.
    """
    numbers = np.arange(batch.begin, batch.begin + len(batch), dtype=np.int64)
    for_validation = hash_fractions(batch.encoded()) < validation_fraction
    masks = {split: for_validation if split == VALIDATION else ~for_validation for split in SPLITS}
    masks = {split: mask & (numbers >= begins[split]) for split, mask in masks.items()}
    wanted = np.logical_or.reduce(list(masks.values()))
    ids, offsets = encoder.encode_flat(batch.only(wanted).texts, end_tokens=True)
    kind = token_type(encoder.vocabulary_size)
    blocks = {}
    for split, mask in masks.items():
        in_split = mask[wanted]
        # Runs of adjacent documents are copied at once: a run begins and ends where the mask changes.
        padded = np.zeros(len(in_split) + 2, np.bool_)
        padded[1:-1] = in_split
        runs = offsets[np.flatnonzero(padded[1:] != padded[:-1])].reshape(-1, 2)
        parts = [ids[begin:end] for begin, end in runs.tolist()]
        tokens: TokenArray = np.concatenate([ids[:0], *parts], dtype=kind, casting="unsafe")
        blocks[split] = Block(numbers[mask], np.cumsum(np.diff(offsets)[in_split]), tokens)
    return blocks
