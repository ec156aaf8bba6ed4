"""Writes the small exported model that `logits.py` reads, and the tokens to ask it for: `export.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from trainer_support.data import VOCABULARY_SIZE, make_tokenizer, random_weights, small_architecture

from gpt2_trainer.formats.huggingface import write_huggingface

ARCHITECTURE = small_architecture(n_layer=3, n_head=4, n_embd=32, n_ctx=12)


def token_ids():
    return np.random.default_rng(0).integers(0, VOCABULARY_SIZE, (2, 6), dtype=np.int32)


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(folder / "tokenizer")
    write_huggingface(folder, ARCHITECTURE, random_weights(ARCHITECTURE), tokenizer)
    np.save(folder / "token_ids.npy", token_ids())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
