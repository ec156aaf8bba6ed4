"""Reads and writes GPT-2 in Hugging Face's layout, which `transformers`, vLLM and llama.cpp load."""

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gpt2_common.errors import InvalidRequest
from gpt2_trainer.configuration.architecture import Architecture, LayerSizes
from gpt2_trainer.formats.checkpoint import SAFETENSORS_METADATA, write_json
from gpt2_trainer.formats.tokenizer_files import END_TOKEN
from gpt2_trainer.model.weights import TOKEN_EMBEDDING, Weights, weight_shapes

CONFIG, MODEL, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt")
# Causal masks that old versions stored as if they were weights.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_HEAD = "lm_head.weight"
_PREFIX = "transformer."
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_huggingface(folder: Path, field: str) -> tuple[Architecture, Weights]:
    """Reads a model.

    Args:
        folder: Folder with `config.json` and `model.safetensors`.
        field: Field of the request that named the folder, for errors.

    Returns:
        The architecture, and the weights by our names, which are Hugging Face's without a prefix.

    Raises:
        InvalidRequest: It is no GPT-2, or a tensor is missing or of another shape; the message names it.
    """
    architecture = _read_architecture(folder / CONFIG, field)
    paths = _model_files(folder, field)
    try:
        with ExitStack() as opened:
            files = [opened.enter_context(safe_open(path, framework="np")) for path in paths]
            return architecture, _read_weights(_Tensors(files), architecture, field)
    except (OSError, SafetensorError, TypeError) as error:
        raise InvalidRequest([(field, f"{', '.join(map(str, paths))} cannot be read: {error}")]) from error


def write_huggingface(folder: Path, architecture: Architecture, weights: Weights, tokenizer: Path) -> None:
    """Writes a model.

    Args:
        folder: Where to write.
        architecture: Sizes.
        weights: float32 weights by our names, the vocabulary exact.
        tokenizer: Folder with `tokenizer.json`, `encoder.json` and `vocab.bpe`.
    """
    sizes, end = architecture.layers, architecture.end_token_id
    write_json(
        folder / CONFIG,
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": architecture.vocabulary_size,
            "n_positions": sizes.n_ctx,
            "n_ctx": sizes.n_ctx,
            "n_embd": sizes.n_embd,
            "n_layer": sizes.n_layer,
            "n_head": sizes.n_head,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "scale_attn_weights": True,
            "tie_word_embeddings": True,
            "use_cache": True,
            "bos_token_id": end,
            "eos_token_id": end,
            "torch_dtype": "float32",
        },
    )
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "do_sample": True, "top_k": 40}
    write_json(folder / "generation_config.json", generation)
    save_file(weights, folder / MODEL, SAFETENSORS_METADATA)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "bos_token": END_TOKEN,
            "eos_token": END_TOKEN,
            "unk_token": END_TOKEN,
            "model_max_length": sizes.n_ctx,
            "clean_up_tokenization_spaces": False,
        },
    )
    for source, target in (("tokenizer.json",) * 2, ("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        shutil.copyfile(tokenizer / source, folder / target)


class _Tensors:
    """The tensors of a model's files, as if they were in one."""

    def __init__(self, files: list[Any]) -> None:
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self._files)

    def get_slice(self, name: str) -> Any:
        """A tensor's shape and type, without its content."""
        return self._files[name].get_slice(name)

    def get_tensor(self, name: str) -> Any:
        """A tensor's content."""
        return self._files[name].get_tensor(name)


def _model_files(folder: Path, field: str) -> list[Path]:
    """The file with the weights, or the files that they are divided among."""
    if (folder / MODEL).is_file():
        return [folder / MODEL]
    index = folder / INDEX
    if not index.is_file():
        pickled = next((name for name in _PICKLES if (folder / name).is_file()), None)
        advice = (
            f"; {pickled} is a pickle file, which could run code and is not read: load it with `transformers` where "
            "you trust it, and save it again by `save_pretrained`, which writes safetensors"
            if pickled
            else ""
        )
        raise InvalidRequest([(field, f"{folder / MODEL} is missing, and {INDEX} too{advice}")])
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        unsafe = [name for name in names if not name or Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest([(field, f"{index} cannot be read: {error!r}")]) from error
    if unsafe:
        raise InvalidRequest([(field, f"{index} names the file {unsafe[0]!r}, which is not in its folder")])
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InvalidRequest([(field, f"{folder / missing[0]} is missing, which {INDEX} names")])
    return [folder / name for name in names]


def _read_architecture(path: Path, field: str) -> Architecture:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _require_gpt2(content, path, field)
        layers = LayerSizes(
            n_layer=int(content["n_layer"]),
            n_head=int(content["n_head"]),
            n_embd=int(content["n_embd"]),
            n_ctx=int(content.get("n_positions") or content["n_ctx"]),
        )
        size = int(content["vocab_size"])
        end = content.get("eos_token_id")
        return Architecture(layers=layers, vocabulary_size=size, end_token_id=size - 1 if end is None else int(end))
    except KeyError as error:
        raise InvalidRequest([(field, f"{path} lacks {error}")]) from error
    except (OSError, ValueError, TypeError) as error:
        raise InvalidRequest([(field, f"{path} cannot be read: {error}")]) from error


def _require_gpt2(content: Mapping[str, Any], path: Path, field: str) -> None:
    """Refuses what has GPT-2's names but other arithmetic."""
    inner = content.get("n_inner")
    expected: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("model_type", content.get("model_type"), ("gpt2",)),
        ("activation_function", content.get("activation_function", "gelu_new"), ("gelu_new", "gelu_pytorch_tanh")),
        ("layer_norm_epsilon", content.get("layer_norm_epsilon", 1e-5), (1e-5,)),
        ("scale_attn_weights", content.get("scale_attn_weights", True), (True,)),
        ("scale_attn_by_inverse_layer_idx", content.get("scale_attn_by_inverse_layer_idx", False), (False,)),
        ("tie_word_embeddings", content.get("tie_word_embeddings", True), (True,)),
        ("n_inner", inner, (None, 4 * int(content["n_embd"]))),
    )
    for name, value, allowed in expected:
        if value not in allowed:
            raise InvalidRequest([(field, f"{path} has {name} {value!r}; GPT-2 as built here has {allowed[-1]!r}")])


def _read_weights(tensors: Any, architecture: Architecture, field: str) -> Weights:
    names = {name.removeprefix(_PREFIX): name for name in tensors.keys()}  # noqa: SIM118 - no mapping
    weights: Weights = {}
    for name, shape in weight_shapes(architecture).items():
        if name not in names:
            raise InvalidRequest([(field, f"the tensor {name} is missing from {MODEL}")])
        found = tensors.get_slice(names[name])
        if tuple(found.get_shape()) != shape:
            raise InvalidRequest(
                [(field, f"the tensor {name} has shape {found.get_shape()} where config.json asks for {list(shape)}")]
            )
        if found.get_dtype() not in _FLOATS:
            raise InvalidRequest([(field, f"the tensor {name} is of type {found.get_dtype()}, not floating point")])
        weights[name] = np.asarray(tensors.get_tensor(names[name])).astype(np.float32)
    for name in sorted(names.keys() - weights.keys()):
        if not _MASK.fullmatch(name) and name != _HEAD:
            raise InvalidRequest([(field, f"the tensor {name} of {MODEL} belongs to no GPT-2 of its config.json")])
    if _HEAD in names and not np.array_equal(
        np.asarray(tensors.get_tensor(_HEAD), np.float32), weights[TOKEN_EMBEDDING]
    ):
        raise InvalidRequest([(field, f"the tensor {_HEAD} differs from {TOKEN_EMBEDDING}; GPT-2's are the same one")])
    return weights
