"""Encodes batches of documents into blocks of each split. A block depends on its batch alone, wherever it is made."""

from collections.abc import Mapping

import numpy as np

from gpt2_tokenizer.corpus.reading import Batch
from gpt2_tokenizer.dataset.shards import Block, TokenArray, token_type
from gpt2_tokenizer.dataset.split import SPLITS, VALIDATION, shares
from gpt2_tokenizer.encoder import Encoder


def encode_block(
    encoder: Encoder, batch: Batch, validation_fraction: float, begins: Mapping[str, int]
) -> dict[str, Block]:
    """Encodes the documents of a batch.

    Args:
        encoder: Encodes texts.
        batch: The documents.
        validation_fraction: Share of texts for validation.
        begins: Number of the first document that each split still needs; those before are left out.

    Returns:
        The documents of each split, in the batch's order.
    """
    numbers = np.arange(batch.begin, batch.begin + len(batch), dtype=np.int64)
    for_validation = shares(batch.encoded()) < validation_fraction
    masks = {split: for_validation if split == VALIDATION else ~for_validation for split in SPLITS}
    masks = {split: mask & (numbers >= begins[split]) for split, mask in masks.items()}
    wanted = np.logical_or.reduce(list(masks.values()))
    ids, offsets = encoder.encode_flat(batch.only(wanted).texts, end_tokens=True)
    kind = token_type(encoder.vocabulary_size)
    blocks = {}
    for split, mask in masks.items():
        ours = mask[wanted]
        # Neighbours of one split are copied at once.
        padded = np.zeros(len(ours) + 2, np.bool_)
        padded[1:-1] = ours
        runs = offsets[np.flatnonzero(padded[1:] != padded[:-1])].reshape(-1, 2)
        parts = [ids[begin:end] for begin, end in runs.tolist()]
        tokens: TokenArray = np.concatenate([ids[:0], *parts], dtype=kind, casting="unsafe")
        blocks[split] = Block(numbers[mask], np.cumsum(np.diff(offsets)[ours]), tokens)
    return blocks
