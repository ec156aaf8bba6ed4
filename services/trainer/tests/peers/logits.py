"""What other implementations of GPT-2 make of an exported model: writes the logits that `test_peers.py` compares with.

    .venv/bin/python services/trainer/tests/peers/export.py FOLDER
    .peers/bin/python services/trainer/tests/peers/logits.py transformers FOLDER
    .peers/bin/python services/trainer/tests/peers/logits.py kerashub FOLDER

The first writes a small model of random weights (seed 1) as ExportModel does. The others load it with
`transformers`, and its weights into KerasHub's GPT2Backbone, each in its own process, as PyTorch and TensorFlow do
not go together. Each writes `<name>.npy` and `<name>.json` beside itself: the versions of the packages, and the digests
of the files that were loaded. To be run again when the export changes. With one more folder (`exports.py`) it reads
the tokens there, and writes there.
"""

import hashlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).parent
FILES = ("config.json", "model.safetensors")


def by_transformers(folder, token_ids):
    import torch
    from transformers import GPT2LMHeadModel

    model, report = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        return model.eval()(torch.from_numpy(token_ids).long()).logits.numpy()


def by_kerashub(folder, token_ids):
    os.environ["KERAS_BACKEND"] = "jax"
    import keras_hub

    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        hidden_dim=config["n_embd"],
        intermediate_dim=4 * config["n_embd"],
        dropout=0.0,
        max_sequence_length=config["n_ctx"],
    )
    backbone.token_embedding.embeddings.assign(weights["wte.weight"])
    backbone.position_embedding.position_embeddings.assign(weights["wpe.weight"])
    for number, layer in enumerate(backbone.transformer_layers):
        fill_layer(layer, {name.removeprefix(f"h.{number}."): value for name, value in weights.items()})
    fill_norm(backbone.layer_norm, weights, "ln_f")
    hidden = backbone({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)})
    return np.asarray(backbone.token_embedding(hidden, reverse=True))


def fill_layer(layer, part):
    attention = layer._self_attention_layer
    dense = (attention._query_dense, attention._key_dense, attention._value_dense)
    kernels, biases = (np.split(part[f"attn.c_attn.{kind}"], 3, axis=-1) for kind in ("weight", "bias"))
    for target, kernel, bias in zip(dense, kernels, biases, strict=True):
        target.kernel.assign(kernel.reshape(target.kernel.shape))
        target.bias.assign(bias.reshape(target.bias.shape))
    pairs = (
        (attention._output_dense, "attn.c_proj"),
        (layer._feedforward_intermediate_dense, "mlp.c_fc"),
        (layer._feedforward_output_dense, "mlp.c_proj"),
    )
    for target, name in pairs:
        target.kernel.assign(part[f"{name}.weight"].reshape(target.kernel.shape))
        target.bias.assign(part[f"{name}.bias"])
    fill_norm(layer._self_attention_layer_norm, part, "ln_1")
    fill_norm(layer._feedforward_layer_norm, part, "ln_2")


def fill_norm(target, weights, name):
    target.gamma.assign(weights[f"{name}.weight"])
    target.beta.assign(weights[f"{name}.bias"])


PEERS = {
    "transformers": (by_transformers, ("transformers", "torch")),
    "kerashub": (by_kerashub, ("keras-hub", "keras", "jax")),
}


def main():
    name, folder, *rest = sys.argv[1], *map(Path, sys.argv[2:])
    tokens, results = (rest[0], rest[0]) if rest else (folder, HERE)
    compute, packages = PEERS[name]
    np.save(results / f"{name}.npy", compute(folder, np.load(tokens / "token_ids.npy")))
    origin = {
        "versions": {package: version(package) for package in packages},
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in FILES},
    }
    (results / f"{name}.json").write_text(json.dumps(origin, indent=2) + "\n")


if __name__ == "__main__":
    main()
