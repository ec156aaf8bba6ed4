"""Reads and writes GPT-2 in Hugging Face's layout, which `transformers`, vLLM and llama.cpp load."""

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gpt2_common.errors import InvalidRequest
from gpt2_common.vocabulary.vocabulary import END_TOKEN
from gpt2_trainer.configuration.architecture import Architecture, LayerSizes, whole_number
from gpt2_trainer.formats.checkpoint import SAFETENSORS_METADATA
from gpt2_trainer.formats.json_files import read_json, write_json
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
        InvalidRequest: It is no GPT-2, or a tensor is missing, of another shape or not finite; the message names it.
    """
    architecture = _read_architecture(folder / CONFIG, field)
    paths = _model_files(folder, field)
    with ExitStack() as opened:
        files = [opened.enter_context(_open(path, field)) for path in paths]
        return architecture, _read_weights(_Tensors(paths, files, field), architecture, field)


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
    """The tensors of a model's files, as if they were in one, by our names."""

    def __init__(self, paths: Sequence[Path], files: Sequence[Any], field: str) -> None:
        self._field = field
        self._places: dict[str, tuple[Path, Any, str]] = {}
        for path, file in zip(paths, files, strict=True):
            for there in file.keys():  # noqa: SIM118 - no mapping
                name = there.removeprefix(_PREFIX)
                if name in self._places:
                    raise self._refused(f"the tensor {name} is there twice, the second time in {path}")
                self._places[name] = path, file, there

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._places)

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A tensor of a shape, as float32, by its name."""
        path, file, there = self._places[name]
        try:
            found = file.get_slice(there)
            if tuple(found.get_shape()) != shape:
                wanted = f"where config.json asks for {list(shape)}"
                raise self._refused(f"the tensor {name} has shape {found.get_shape()} {wanted}")
            if found.get_dtype() not in _FLOATS:
                raise self._refused(f"the tensor {name} is of type {found.get_dtype()}, not floating point")
            with np.errstate(over="ignore"):
                value = np.asarray(file.get_tensor(there)).astype(np.float32)
        except (OSError, SafetensorError, TypeError) as error:
            raise self._refused(f"{path} cannot be read: {error}") from error
        if not np.isfinite(value).all():
            raise self._refused(f"the tensor {name} holds a number that is not finite")
        return value

    def _refused(self, description: str) -> InvalidRequest:
        return InvalidRequest([(self._field, description)])


def _open(path: Path, field: str) -> Any:
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise InvalidRequest([(field, f"{path} cannot be read: {error}")]) from error


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
        names = sorted(set(read_json(index)["weight_map"].values()))
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
        content = read_json(path)
        layers = LayerSizes(
            n_layer=whole_number(content, "n_layer"),
            n_head=whole_number(content, "n_head"),
            n_embd=whole_number(content, "n_embd"),
            n_ctx=whole_number(content, "n_positions" if content.get("n_positions") else "n_ctx"),
        )
        _require_gpt2(content, layers, path, field)
        size = whole_number(content, "vocab_size")
        end = size - 1 if content.get("eos_token_id") is None else whole_number(content, "eos_token_id")
        return Architecture(layers=layers, vocabulary_size=size, end_token_id=end)
    except KeyError as error:
        raise InvalidRequest([(field, f"{path} lacks {error}")]) from error
    except (OSError, ValueError, TypeError) as error:
        raise InvalidRequest([(field, f"{path} cannot be read: {error}")]) from error


def _require_gpt2(content: Mapping[str, Any], layers: LayerSizes, path: Path, field: str) -> None:
    """Refuses what has GPT-2's names but other arithmetic."""
    inner = content.get("n_inner")
    expected: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("model_type", content.get("model_type"), ("gpt2",)),
        ("activation_function", content.get("activation_function", "gelu_new"), ("gelu_new", "gelu_pytorch_tanh")),
        ("layer_norm_epsilon", content.get("layer_norm_epsilon", 1e-5), (1e-5,)),
        ("scale_attn_weights", content.get("scale_attn_weights", True), (True,)),
        ("scale_attn_by_inverse_layer_idx", content.get("scale_attn_by_inverse_layer_idx", False), (False,)),
        ("tie_word_embeddings", content.get("tie_word_embeddings", True), (True,)),
        ("n_inner", inner, (None, 4 * layers.n_embd)),
    )
    for name, value, allowed in expected:
        if value not in allowed:
            raise InvalidRequest([(field, f"{path} has {name} {value!r}; GPT-2 as built here has {allowed[-1]!r}")])


def _read_weights(tensors: _Tensors, architecture: Architecture, field: str) -> Weights:
    names = tensors.names()
    weights: Weights = {}
    shapes = weight_shapes(architecture)
    for name, shape in shapes.items():
        if name not in names:
            raise InvalidRequest([(field, f"the tensor {name} is missing from {MODEL}")])
        weights[name] = tensors.read(name, shape)
    for name in sorted(names - weights.keys()):
        if not _MASK.fullmatch(name) and name != _HEAD:
            raise InvalidRequest([(field, f"the tensor {name} of {MODEL} belongs to no GPT-2 of its config.json")])
    if _HEAD in names and not np.array_equal(tensors.read(_HEAD, shapes[TOKEN_EMBEDDING]), weights[TOKEN_EMBEDDING]):
        raise InvalidRequest([(field, f"the tensor {_HEAD} differs from {TOKEN_EMBEDDING}; GPT-2's are the same one")])
    return weights
