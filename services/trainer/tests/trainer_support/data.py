"""Small tokenizers, datasets and checkpoints."""

import json
import shutil
from pathlib import Path

import numpy as np

from gpt2_common.artifacts import Artifact, ArtifactWriter
from gpt2_common.vocabulary.byte_symbols import byte_of_symbol
from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts.tokenizer import END_TOKEN
from gpt2_trainer.configuration.architecture import Architecture, LayerSizes
from gpt2_trainer.formats.checkpoint import Checkpoint, TrainingState, write_checkpoint
from gpt2_trainer.model.weights import initial_weights

TOKENIZER_DIGEST = "5" * 64
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("a", "n"), ("Ã", "¼")]


def vocabulary() -> dict[str, int]:
    tokens = [*sorted(byte_of_symbol()), *("".join(merge) for merge in MERGES), END_TOKEN]
    return {token: number for number, token in enumerate(tokens)}


VOCABULARY_SIZE = len(vocabulary())
END_TOKEN_ID = VOCABULARY_SIZE - 1


def write_pair(folder: Path, names: tuple[str, str] = ("encoder.json", "vocab.bpe")) -> None:
    (folder / names[0]).write_text(json.dumps(vocabulary()))
    lines = "".join(f"{left} {right}\n" for left, right in MERGES)
    (folder / names[1]).write_text(f"#version: 0.2\n{lines}")


def make_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(Vocabulary.from_parts(vocabulary(), MERGES), folder)
    return folder


def small_architecture(**sizes: int) -> Architecture:
    layers = LayerSizes(**{"n_layer": 2, "n_head": 2, "n_embd": 16, "n_ctx": 16, **sizes})
    return Architecture(layers=layers, vocabulary_size=VOCABULARY_SIZE, end_token_id=END_TOKEN_ID)


def learnable_tokens(count: int, seed: int = 0) -> np.ndarray:
    """Tokens of which each tells much about the next, with an end token now and then."""
    random = np.random.default_rng(seed)
    tokens = np.cumsum(random.choice([1, 2, 7], count, p=[0.8, 0.15, 0.05])) % 64
    tokens[random.random(count) < 0.01] = END_TOKEN_ID
    return tokens.astype(np.uint16)


def make_dataset(folder: Path, train: int = 3000, validation: int = 400, shard: int = 1300) -> Artifact:
    working = folder.with_name(f"{folder.name}-work")
    make_tokenizer(working / "tokenizer")
    sizes = {"train": train, "validation": validation}
    for seed, (split, count) in enumerate(sizes.items()):
        tokens = learnable_tokens(count, seed)
        for number, start in enumerate(range(0, max(count, 1), shard)):
            np.save(working / f"{split}-{number:05d}.npy", tokens[start : start + shard])
    description = {
        "vocabulary_size": VOCABULARY_SIZE,
        "end_token_id": END_TOKEN_ID,
        "dtype": "uint16",
        "tokenizer_digest": TOKENIZER_DIGEST,
        **{split: {"tokens": count, "documents": 1} for split, count in sizes.items()},
    }
    (working / "dataset.json").write_text(json.dumps(description))
    return ArtifactWriter(folder.as_uri(), "dataset", working, {}, ()).commit()


def random_weights(architecture: Architecture, seed: int = 1) -> dict[str, np.ndarray]:
    """Weights of which none is 0 or 1, so that each matters."""
    random = np.random.default_rng(seed)
    shapes = initial_weights(architecture, 0)
    return {
        name: (random.normal(0, 0.1, value.shape) + (name.split(".")[-2].startswith("ln") and value)).astype(np.float32)
        for name, value in shapes.items()
    }


def make_checkpoint(folder: Path, architecture: Architecture, weights: dict[str, np.ndarray]) -> Artifact:
    working = folder.with_name(f"{folder.name}-work")
    shutil.rmtree(working, ignore_errors=True)
    tokenizer = make_tokenizer(folder.with_name(f"{folder.name}-tokenizer"))
    working.mkdir(parents=True)
    state = TrainingState(tokenizer_digest=TOKENIZER_DIGEST, source="test")
    checkpoint = Checkpoint(architecture=architecture, weights=weights, slots={}, state=state)
    write_checkpoint(working, checkpoint, tokenizer)
    return ArtifactWriter(folder.as_uri(), "checkpoint", working, {}, ()).commit()
