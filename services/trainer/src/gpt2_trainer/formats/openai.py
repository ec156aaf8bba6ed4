"""Reads OpenAI's checkpoints: `hparams.json` and a TensorFlow checkpoint with the variables of their `model.py`."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from gpt2_common.errors import InvalidRequest
from gpt2_contracts.openai import HPARAMS_FILE
from gpt2_trainer.configuration.architecture import Architecture, LayerSizes, whole_number
from gpt2_trainer.formats.json_files import read_json
from gpt2_trainer.model.weights import Weights, weight_shapes

_TENSORFLOW_PARTS = {"weight": "w", "bias": "b"}
_NORM_PARTS = {"weight": "g", "bias": "b"}


def read_openai(folder: Path, end_token_id: int | None, field: str) -> tuple[Architecture, Weights]:
    """Reads a checkpoint.

    Args:
        folder: Folder with `hparams.json`, `checkpoint` and `model.ckpt.*`.
        end_token_id: Id of the end token; None: the last of the vocabulary, as in OpenAI's.
        field: Field of the request that named the folder, for errors.

    Returns:
        The architecture, and the weights by our names.

    Raises:
        InvalidRequest: A file or tensor is missing, damaged, of another shape or not finite; the message names it.
    """
    architecture = _read_architecture(folder / HPARAMS_FILE, end_token_id, field)
    path = _find_checkpoint(folder)
    if path is None:
        raise InvalidRequest(
            [(field, f"{folder} has no TensorFlow checkpoint: `checkpoint` is missing or damaged, or what it names is")]
        )
    try:
        reader = tf.train.load_checkpoint(path)
        return architecture, _read_weights(reader, architecture, field)
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
        raise InvalidRequest([(field, f"{path} cannot be read as a TensorFlow checkpoint: {error}")]) from error


def _find_checkpoint(folder: Path) -> str | None:
    """The checkpoint that the file `checkpoint` names, in this folder.

    TensorFlow often writes the absolute path of the machine where it was saved.
    """
    try:
        state = tf.train.get_checkpoint_state(str(folder))
    except (tf.errors.OpError, ValueError):
        return None
    if state is None:
        return None
    path = folder / Path(state.model_checkpoint_path).name
    return str(path) if path.with_name(f"{path.name}.index").is_file() else None


def variable_name(name: str) -> str:
    """OpenAI's name of a weight of ours."""
    path, _, part = name.rpartition(".")
    if path in ("wte", "wpe"):
        return f"model/{path}"
    if path.startswith("h."):
        _, layer, inner = path.split(".", 2)
        path = f"h{layer}/{inner.replace('.', '/')}"
    is_norm = path.rpartition("/")[2].startswith("ln_")
    return f"model/{path}/{(_NORM_PARTS if is_norm else _TENSORFLOW_PARTS)[part]}"


def _read_architecture(path: Path, end_token_id: int | None, field: str) -> Architecture:
    try:
        content = read_json(path)
        layers = LayerSizes(**{name: whole_number(content, name) for name in ("n_layer", "n_head", "n_embd", "n_ctx")})
        size = whole_number(content, "n_vocab")
        end = size - 1 if end_token_id is None else end_token_id
        return Architecture(layers=layers, vocabulary_size=size, end_token_id=end)
    except KeyError as error:
        raise InvalidRequest([(field, f"{path} lacks {error}")]) from error
    except (OSError, ValueError, TypeError) as error:
        raise InvalidRequest([(field, f"{path} cannot be read: {error}")]) from error


def _read_weights(reader: Any, architecture: Architecture, field: str) -> Weights:
    there, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    weights: Weights = {}
    for name, shape in weight_shapes(architecture).items():
        variable = variable_name(name)
        if variable not in there:
            raise InvalidRequest([(field, f"the tensor {variable} is missing from the checkpoint")])
        # OpenAI's layers are convolutions of width 1.
        found = tuple(there[variable])
        if found not in (shape, (1, *shape)):
            raise InvalidRequest(
                [(field, f"the tensor {variable} has shape {list(found)} where {HPARAMS_FILE} asks for {list(shape)}")]
            )
        if not types[variable].is_floating:
            raise InvalidRequest(
                [(field, f"the tensor {variable} is of type {types[variable].name}, not floating point")]
            )
        weights[name] = np.asarray(reader.get_tensor(variable), np.float32).reshape(shape)
        if not np.isfinite(weights[name]).all():
            raise InvalidRequest([(field, f"the tensor {variable} holds a number that is not finite")])
    return weights
