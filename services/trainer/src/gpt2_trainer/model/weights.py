"""The weights of a GPT-2: names, shapes, initial values.

Names and layouts are those of Hugging Face's GPT-2 (`wte.weight`, `h.0.attn.c_attn.weight`, …; matrices are
[input, output], as OpenAI's are), so that a checkpoint's `weights.safetensors` needs no translation. All are float32.

    wte.weight [vocabulary, n_embd]         h.i.ln_1.weight, h.i.ln_1.bias [n_embd]
    wpe.weight [n_ctx, n_embd]              h.i.attn.c_attn.weight [n_embd, 3 n_embd], .bias [3 n_embd]
    ln_f.weight, ln_f.bias [n_embd]         h.i.attn.c_proj.weight [n_embd, n_embd], .bias [n_embd]
                                            h.i.ln_2.weight, h.i.ln_2.bias [n_embd]
                                            h.i.mlp.c_fc.weight [n_embd, 4 n_embd], .bias [4 n_embd]
                                            h.i.mlp.c_proj.weight [4 n_embd, n_embd], .bias [n_embd]

Relatives of GPT-2 may have `n_inner` in place of 4 n_embd, and an untied head: lm_head.weight [vocabulary, n_embd].
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2_trainer.configuration.architecture import Architecture

Weights = dict[str, NDArray[np.float32]]

TOKEN_EMBEDDING = "wte.weight"
HEAD = "lm_head.weight"
POSITION_EMBEDDING = "wpe.weight"
COLUMNS = "_columns"
"""Suffix of optimizer slots with one value per column of their weight, and none per row."""
LAYER_PARTS = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)


def layer_weight(layer: int, part: str) -> str:
    """Name of one weight of one layer, counted from 0."""
    return f"h.{layer}.{part}"


def projection(architecture: Architecture) -> str:
    """Name of the matrix that logits are products with: the token embedding, or a relative's untied head."""
    return TOKEN_EMBEDDING if architecture.variant.tie_word_embeddings else HEAD


def is_layer_weight(name: str) -> bool:
    """Whether a weight belongs to a transformer layer, rather than to the embeddings or the last norm."""
    return name.startswith("h.")


def is_decayed(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to biases, gains and positions."""
    return name in (TOKEN_EMBEDDING, HEAD) or (
        is_layer_weight(name) and name.endswith(("c_attn.weight", "_proj.weight", "c_fc.weight"))
    )


def average_name(weight: str) -> str:
    """Name of the optimizer slot with a weight's exponential moving average."""
    return f"average/{weight}"


def averaged(weights: Mapping[str, Any], slots: Mapping[str, Any]) -> dict[str, Any]:
    """The weights, of whatever kind, with their averages in place of those that have one among the slots."""
    return {name: slots.get(average_name(name), value) for name, value in weights.items()}


def weight_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every weight by name, with the exact vocabulary."""
    sizes = architecture.layers
    width, inner = sizes.n_embd, sizes.inner_size
    layer_shapes: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (width, inner),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, width),
        "mlp.c_proj.bias": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        TOKEN_EMBEDDING: (architecture.vocabulary_size, width),
        POSITION_EMBEDDING: (sizes.n_ctx, width),
    }
    for layer in range(sizes.n_layer):
        shapes |= {layer_weight(layer, part): layer_shapes[part] for part in LAYER_PARTS}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    return shapes if architecture.variant.tie_word_embeddings else {**shapes, HEAD: shapes[TOKEN_EMBEDDING]}


def count_parameters(architecture: Architecture) -> int:
    """Number of weights, the vocabulary's exact."""
    return sum(math.prod(shape) for shape in weight_shapes(architecture).values())


def initial_weights(architecture: Architecture, seed: int) -> Weights:
    """Draws the float32 weights of a new model.

    As in OpenAI's code, standard deviations are 0.02 for matrices and token embeddings and 0.01 for positions, gains 1,
    biases 0. Projections back into the residual stream are scaled by 1/√(2 n_layer) (Radford et al. 2019, section 2.3).
    Each weight has its own random stream, made of the seed and its name, so that it does not depend on the others.
    """
    return {
        name: _initial_weight(name, shape, architecture.layers.n_layer, seed)
        for name, shape in weight_shapes(architecture).items()
    }


def _initial_weight(name: str, shape: tuple[int, ...], layers: int, seed: int) -> NDArray[np.float32]:
    if name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    deviation = 0.01 if name == POSITION_EMBEDDING else 0.02
    if name.endswith("c_proj.weight"):
        deviation /= math.sqrt(2 * layers)
    generator = np.random.Generator(np.random.Philox(key=[seed % 2**64, zlib.crc32(name.encode())]))
    values = generator.standard_normal(shape, np.float32)
    values *= np.float32(deviation)
    return values


def check_weights(weights: Mapping[str, NDArray[np.generic]], architecture: Architecture) -> None:
    """Checks that every weight is present, in its shape, float32 and finite.

    Raises:
        ValueError: One is not; the message names it.
    """
    shapes = weight_shapes(architecture)
    if missing := [name for name in shapes if name not in weights]:
        raise ValueError(f"the weight {missing[0]} is missing ({len(missing)} of {len(shapes)} are)")
    if unknown := [name for name in weights if name not in shapes]:
        raise ValueError(f"the weight {unknown[0]} belongs to no GPT-2 of these sizes ({len(unknown)} do not)")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"the weight {name} has shape {list(weights[name].shape)} instead of {list(shape)}")
        if weights[name].dtype != np.float32:
            raise ValueError(f"the weight {name} is of type {weights[name].dtype} instead of float32")
        if not np.isfinite(weights[name]).all():
            raise ValueError(f"the weight {name} holds a number that is not finite")


def pad_vocabulary(tensors: Weights, architecture: Architecture) -> Weights:
    """Adds rows of zeros to what has a row per token, and to its optimizer slots, up to the padded vocabulary."""
    missing = architecture.padded_vocabulary_size - architecture.vocabulary_size
    return {
        name: np.pad(tensor, [(0, missing)] + [(0, 0)] * (tensor.ndim - 1))
        if missing and has_vocabulary(name)
        else tensor
        for name, tensor in tensors.items()
    }


def cut_vocabulary(tensors: Weights, architecture: Architecture) -> Weights:
    """Removes the rows that `pad_vocabulary` added."""
    return {
        name: tensor[: architecture.vocabulary_size] if has_vocabulary(name) else tensor
        for name, tensor in tensors.items()
    }


def has_vocabulary(name: str) -> bool:
    """Whether a weight, or an optimizer slot of one, has a row for each token."""
    # A slot's name ends with its weight's.
    slot, _, weight = name.rpartition("/")
    return weight in (TOKEN_EMBEDDING, HEAD) and not slot.endswith(COLUMNS)
