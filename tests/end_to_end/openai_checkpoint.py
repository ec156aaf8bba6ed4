"""`python openai_checkpoint.py FOLDER`: writes a small model in OpenAI's format, a TensorFlow checkpoint.

The layout is that of OpenAI's published models, with two layers and a vocabulary of the 256 bytes and the end token.
"""

import json
import sys
from pathlib import Path

import numpy as np

LAYERS, WIDTH, CONTEXT = 2, 16, 32


def byte_symbols() -> list[str]:
    """GPT-2's characters for the 256 bytes, in the order of its vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [*map(chr, shown), *(chr(256 + number) for number in range(len(hidden)))]


def variables(vocabulary_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.02, shape).astype(np.float32)

    found = {"model/wte": normal(vocabulary_size, WIDTH), "model/wpe": normal(CONTEXT, WIDTH)}
    norms = ["model/ln_f", *(f"model/h{layer}/ln_{number}" for layer in range(LAYERS) for number in (1, 2))]
    for name in norms:
        found |= {f"{name}/g": np.ones(WIDTH, np.float32), f"{name}/b": np.zeros(WIDTH, np.float32)}
    for layer in range(LAYERS):
        for name, inside, outside in (
            ("attn/c_attn", WIDTH, 3 * WIDTH),
            ("attn/c_proj", WIDTH, WIDTH),
            ("mlp/c_fc", WIDTH, 4 * WIDTH),
            ("mlp/c_proj", 4 * WIDTH, WIDTH),
        ):
            found[f"model/h{layer}/{name}/w"] = normal(1, inside, outside)
            found[f"model/h{layer}/{name}/b"] = np.zeros(outside, np.float32)
    return found


def main(folder: Path) -> None:
    import tensorflow as tf

    tokens = [*byte_symbols(), "<|endoftext|>"]
    hparams = {"n_vocab": len(tokens), "n_ctx": CONTEXT, "n_embd": WIDTH, "n_head": 2, "n_layer": LAYERS}
    (folder / "hparams.json").write_text(json.dumps(hparams))
    (folder / "encoder.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in variables(len(tokens)).items():
            tf.compat.v1.get_variable(name, initializer=value)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / "model.ckpt"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
