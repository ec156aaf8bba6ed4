"""Low-rank adapters of matrices (LoRA, Hu et al. 2021): W + (alpha / rank) A B.

A is [input, rank], B [rank, output], named `lora_a/<weight>` and `lora_b/<weight>` beside the weights. A is initialised
uniformly within 1/√input, as in PEFT, and B with zeros, so that a new adapter changes nothing.
"""

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import LoraConfig
from gpt2_trainer.model.weights import Weights, is_decayed, is_layer_weight, layer_weight, weight_shapes

_A, _B = "lora_a/", "lora_b/"


def is_adapter(name: str) -> bool:
    """Whether a tensor is part of an adapter, rather than a weight."""
    return name.startswith((_A, _B))


def is_hidden_matrix(name: str) -> bool:
    """Whether a tensor is a matrix inside the network, of a layer or an adapter, which Muon trains."""
    return is_adapter(name) or (is_layer_weight(name) and is_decayed(name))


def adapter_names(weight: str) -> tuple[str, str]:
    """Names of A and B of a weight."""
    return _A + weight, _B + weight


def adapted_weights(architecture: Architecture, lora: LoraConfig) -> list[str]:
    """Names of the weights that have adapters."""
    layers = range(architecture.layers.n_layer)
    return [layer_weight(layer, f"{target}.weight") for layer in layers for target in lora.targets]


def initial_adapters(architecture: Architecture, lora: LoraConfig, seed: int) -> Weights:
    """New adapters, float32; A is drawn from the seed and the weight's name."""
    shapes = weight_shapes(architecture)
    adapters: Weights = {}
    for weight in adapted_weights(architecture, lora):
        inputs, outputs = shapes[weight]
        a, b = adapter_names(weight)
        random = np.random.Generator(np.random.Philox(key=[seed % 2**64, zlib.crc32(a.encode())]))
        limit = 1 / math.sqrt(inputs)
        adapters[a] = random.uniform(-limit, limit, (inputs, lora.rank)).astype(np.float32)
        adapters[b] = np.zeros((lora.rank, outputs), np.float32)
    return adapters


def merge_adapters(weights: Weights, adapters: Weights, lora: LoraConfig) -> Weights:
    """Weights with their adapters' products added, float32."""
    merged = dict(weights)
    for weight in weights:
        a, b = adapter_names(weight)
        if a in adapters:
            addition: NDArray[np.float32] = adapters[a] @ adapters[b]
            merged[weight] = weights[weight] + np.float32(lora.scale) * addition
    return merged
