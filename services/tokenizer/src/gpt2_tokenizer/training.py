"""Trains a byte-level BPE vocabulary with GPT-2's pre-tokenisation. The same corpus gives the same vocabulary."""

import json
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gpt2_tokenizer.corpus.pieces import pieces
from gpt2_tokenizer.vocabulary.byte_symbols import symbol_of_byte
from gpt2_tokenizer.vocabulary.vocabulary import END_TOKEN, Vocabulary

LEAST_VOCABULARY = 257
LARGEST_VOCABULARY = 1_000_000
DEFAULT_VOCABULARY = 50_257
DEFAULT_MIN_FREQUENCY = 2

_BATCH_CHARACTERS = 1 << 20


def train_vocabulary(texts: Iterable[str], size: int, min_frequency: int) -> Vocabulary:
    """Trains a vocabulary.

    Args:
        texts: The documents. They are read once, a batch at a time; what stays in memory is the count of each distinct
            part of the pre-tokenisation.
        size: Tokens wanted, the end token included, 257 or more. A small corpus gives fewer.
        min_frequency: Times that a pair must occur to be merged.

    Returns:
        A vocabulary numbered as OpenAI's: the bytes, then one token for each merge, the end token last.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        min_frequency=min_frequency,
        # Not made known here: the trainer would number it first, and would take it out of texts.
        special_tokens=[],
        initial_alphabet=list(symbol_of_byte().values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(texts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    ids: dict[str, int] = model["vocab"]
    return Vocabulary.from_parts({**ids, END_TOKEN: len(ids)}, [(left, right) for left, right in model["merges"]])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        for piece in pieces(text):
            batch.append(piece)
            characters += len(piece)
            if characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    yield batch
