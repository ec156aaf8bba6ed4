"""Reads and writes GPT-2 in Hugging Face's layout, which `transformers`, vLLM and llama.cpp load."""

import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gpt2_common.errors import InvalidRequest
from gpt2_common.vocabulary.files import read_end_token, tokenizer_config
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts import openai
from gpt2_contracts.tokenizer import (
    CONFIG_FILE,
    ENCODER_FILE,
    HUGGINGFACE_ENCODER_FILE,
    HUGGINGFACE_MERGES_FILE,
    MERGES_FILE,
    TOKENIZER_FILE,
)
from gpt2_trainer.configuration.architecture import NORM_EPSILON, Architecture, LayerSizes, Variant, whole_number
from gpt2_trainer.formats.checkpoint import SAFETENSORS_METADATA
from gpt2_trainer.formats.json_files import read_json, write_json
from gpt2_trainer.formats.safetensors_reader import Tensors, open_tensors
from gpt2_trainer.formats.unsupported_formats import unsupported_format, unsupported_tensor
from gpt2_trainer.model.weights import HEAD, TOKEN_EMBEDDING, Weights, has_vocabulary, weight_shapes

_TOKENIZER_FILES = (
    (TOKENIZER_FILE, TOKENIZER_FILE),
    (ENCODER_FILE, HUGGINGFACE_ENCODER_FILE),
    (MERGES_FILE, HUGGINGFACE_MERGES_FILE),
)
"""Names of a tokenizer artifact's files, and those in Hugging Face's layout."""
CONFIG, MODEL, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# What `transformers` takes where a config names none.
# Causal masks that old versions of `transformers` stored as buffers.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_PREFIX = "transformer."
# Names that `transformers` has for the GELU: in its tanh form, and exact.
_ACTIVATIONS = {
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"), "gelu_new"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
}


def read_huggingface(folder: Path, field: str, tokenizer: Vocabulary | None = None) -> tuple[Architecture, Weights]:
    """Reads a model.

    Args:
        folder: Folder with `config.json` and `model.safetensors`.
        field: Field of the request that named the folder, for errors.
        tokenizer: The model's tokenizer. With it the vocabulary has all rows of the token embedding, whatever
            config.json has, and the end token is the tokenizer's; without it the vocabulary is that of config.json,
            and further rows are ignored.

    Returns:
        The architecture, and the weights by our names, which are Hugging Face's without a prefix.

    Raises:
        InvalidRequest: It is no GPT-2, or a tensor is missing, of another shape or not finite; the message names it.
    """
    paths = _model_files(folder, field)
    with ExitStack() as stack:
        files = [stack.enter_context(open_tensors(path, field)) for path in paths]
        tensors = Tensors(paths, files, field)
        rows = tensors.rows(TOKEN_EMBEDDING) if tokenizer else 0
        known_end = tokenizer.end_token_id if tokenizer else None
        architecture = _read_architecture(folder / CONFIG, rows, known_end, field)
        return architecture, _read_weights(tensors, architecture, field)


def write_huggingface(folder: Path, architecture: Architecture, weights: Weights, tokenizer: Path) -> None:
    """Writes a model.

    Args:
        folder: Where to write.
        architecture: Sizes.
        weights: float32 weights by our names, the vocabulary exact.
        tokenizer: Folder with a tokenizer artifact's files.
    """
    sizes, end, variant = architecture.layers, architecture.end_token_id, architecture.variant
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
            "n_inner": sizes.n_inner or None,
            "activation_function": variant.activation_function,
            "layer_norm_epsilon": variant.layer_norm_epsilon,
            "initializer_range": 0.02,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "scale_attn_weights": variant.scale_attn_weights,
            "tie_word_embeddings": variant.tie_word_embeddings,
            "use_cache": True,
            "bos_token_id": end,
            "eos_token_id": end,
            "torch_dtype": "float32",
            **({"scale_attn_by_inverse_layer_idx": True} if variant.scale_attn_by_inverse_layer_idx else {}),
        },
    )
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "do_sample": True, "top_k": 40}
    write_json(folder / "generation_config.json", generation)
    # With an untied head, `transformers` takes the other weights under its prefix alone.
    prefix = "" if architecture.variant.tie_word_embeddings else _PREFIX
    named = {name if name == HEAD else prefix + name: value for name, value in weights.items()}
    save_file(named, folder / MODEL, SAFETENSORS_METADATA)
    beside = {**tokenizer_config(read_end_token(tokenizer)), "model_max_length": sizes.n_ctx}
    write_json(folder / CONFIG_FILE, beside)
    for source, target in _TOKENIZER_FILES:
        shutil.copyfile(tokenizer / source, folder / target)


def _model_files(folder: Path, field: str) -> list[Path]:
    """The file with the weights, or the shards that the index names."""
    if (folder / MODEL).is_file():
        return [folder / MODEL]
    index = folder / INDEX
    if not index.is_file():
        problem = unsupported_format([path.name for path in folder.iterdir()])
        advice = f"; {problem}" if problem else ""
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


def _read_architecture(path: Path, rows: int, known_end: int | None, field: str) -> Architecture:
    try:
        content = read_json(path)
        layers = LayerSizes.of(
            n_layer=whole_number(content, "n_layer"),
            n_head=whole_number(content, "n_head"),
            n_embd=whole_number(content, "n_embd"),
            n_ctx=whole_number(content, "n_positions" if content.get("n_positions") else "n_ctx"),
            n_inner=0 if content.get("n_inner") is None else whole_number(content, "n_inner"),
        )
        variant = _read_variant(content, path, field)
        size = max(whole_number(content, "vocab_size"), rows)
        end = _end_token_id(content, size, known_end)
        return Architecture(layers=layers, vocabulary_size=size, end_token_id=end, variant=variant)
    except KeyError as error:
        raise InvalidRequest([(field, f"{path} lacks {error}")]) from error
    except (OSError, ValueError, TypeError) as error:
        raise InvalidRequest([(field, f"{path} cannot be read: {error}")]) from error


def _end_token_id(content: Mapping[str, Any], size: int, known: int | None) -> int:
    """The end token: the tokenizer's, else the config's, else OpenAI's, else the last of the vocabulary."""
    if known is not None and known < size:
        return known
    named = None if content.get("eos_token_id") is None else whole_number(content, "eos_token_id")
    if named is not None:
        return named
    return openai.END_TOKEN_ID if size > openai.END_TOKEN_ID else size - 1


def _read_variant(content: Mapping[str, Any], path: Path, field: str) -> Variant:
    """What a relative of GPT-2 computes otherwise. Refuses what has GPT-2's names but arithmetic that is not here."""
    activation = content.get("activation_function", "gelu_new")
    for name, value, allowed in (
        ("model_type", content.get("model_type"), ("gpt2",)),
        ("activation_function", activation, tuple(_ACTIVATIONS)),
        ("add_cross_attention", content.get("add_cross_attention", False), (False,)),
        ("pruned_heads", content.get("pruned_heads") or None, (None,)),
    ):
        if value not in allowed:
            fitting = " or ".join(repr(item) for item in allowed)
            raise InvalidRequest([(field, f"{path} has {name} {value!r}, not supported: it must be {fitting}")])
    names = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings")
    given = {name: content[name] for name in names if content.get(name) is not None}
    epsilon = content.get("layer_norm_epsilon", NORM_EPSILON)
    epsilon = float(epsilon) if isinstance(epsilon, int) and not isinstance(epsilon, bool) else epsilon
    # `reorder_and_upcast_attn` changes the order of the same operations, in float32, as they are here anyway.
    return Variant.from_json({**given, "layer_norm_epsilon": epsilon, "activation_function": _ACTIVATIONS[activation]})


def _read_weights(tensors: Tensors, architecture: Architecture, field: str) -> Weights:
    names = tensors.names()
    if problem := unsupported_tensor(names):
        raise InvalidRequest([(field, f"{MODEL}: {problem}")])
    weights: Weights = {}
    shapes = weight_shapes(architecture)
    for name, shape in shapes.items():
        if name not in names:
            raise InvalidRequest([(field, f"the tensor {name} is missing from {MODEL}")])
        weights[name] = tensors.read(name, shape, more_rows=has_vocabulary(name))
    for name in sorted(names - weights.keys()):
        if not _MASK.fullmatch(name) and name != HEAD:
            raise InvalidRequest([(field, f"the tensor {name} of {MODEL} belongs to no GPT-2 of its config.json")])
    tied = HEAD in names and HEAD not in shapes
    if tied and not np.array_equal(
        tensors.read(HEAD, shapes[TOKEN_EMBEDDING], more_rows=True), weights[TOKEN_EMBEDDING]
    ):
        advice = 'set "tie_word_embeddings": false in config.json where the model was trained so'
        raise InvalidRequest([(field, f"the tensor {HEAD} differs from {TOKEN_EMBEDDING}; {advice}")])
    return weights
