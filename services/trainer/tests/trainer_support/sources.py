"""Small models in the formats of others, for imports."""

import json

from safetensors.numpy import save_file

from trainer_support.data import END_TOKEN_ID, VOCABULARY_SIZE


def openai_variables(weights):
    """The weights under the names and shapes that OpenAI's code gives them, written out rather than derived."""
    variables = {"model/wte": weights["wte.weight"], "model/wpe": weights["wpe.weight"]}
    variables |= {"model/ln_f/g": weights["ln_f.weight"], "model/ln_f/b": weights["ln_f.bias"]}
    for layer in range(2):
        for norm in ("ln_1", "ln_2"):
            variables[f"model/h{layer}/{norm}/g"] = weights[f"h.{layer}.{norm}.weight"]
            variables[f"model/h{layer}/{norm}/b"] = weights[f"h.{layer}.{norm}.bias"]
        for matrix in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"):
            name = f"h.{layer}.{matrix.replace('/', '.')}"
            variables[f"model/h{layer}/{matrix}/w"] = weights[f"{name}.weight"][None]
            variables[f"model/h{layer}/{matrix}/b"] = weights[f"{name}.bias"]
    return variables


def write_hparams(folder, **changes):
    sizes = {"n_vocab": VOCABULARY_SIZE, "n_ctx": 16, "n_embd": 16, "n_head": 2, "n_layer": 2}
    (folder / "hparams.json").write_text(json.dumps(sizes | changes))


def write_huggingface_files(folder, weights, prefix="", extra=None, **config):
    """The weights in Hugging Face's format, with some tensors added, exchanged or, where they are None, left out."""
    tensors = {prefix + name: value for name, value in weights.items()} | (extra or {})
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / "model.safetensors")
    sizes = {"n_positions": 16, "n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": VOCABULARY_SIZE}
    content = {"model_type": "gpt2", "eos_token_id": END_TOKEN_ID, **sizes, **config}
    (folder / "config.json").write_text(json.dumps(content))


def write_shards(folder, weights, count=3):
    """The weights divided among several files, as `save_pretrained` does with large models."""
    write_huggingface_files(folder, weights)
    (folder / "model.safetensors").unlink()
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    places = {f"transformer.{name}": names[number % count] for number, name in enumerate(weights)}
    for shard in names:
        tensors = {name: weights[name.removeprefix("transformer.")] for name in places if places[name] == shard}
        save_file(tensors, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return names
