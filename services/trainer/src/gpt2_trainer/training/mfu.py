"""Model FLOPs utilisation (MFU): the model's floating-point operations per second as a fraction of the device's peak.

Operations as in appendix B of the PaLM paper: 6 N + 12 L H Q T per token, forward and backward, without
rematerialisation.
"""

from collections.abc import Mapping
from types import MappingProxyType

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.model.weights import count_parameters

PEAK_TFLOPS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "H200": {"bfloat16": 989.0, "float32": 494.5},
        "H100 PCIe": {"bfloat16": 756.0, "float32": 378.0},
        "H100 NVL": {"bfloat16": 835.0, "float32": 417.5},
        "H100": {"bfloat16": 989.0, "float32": 494.5},
        "H20": {"bfloat16": 148.0, "float32": 74.0},
        "B200": {"bfloat16": 2250.0, "float32": 1125.0},
        "A100": {"bfloat16": 312.0, "float32": 156.0},
        "A10G": {"bfloat16": 70.0, "float32": 35.0},
        "A10": {"bfloat16": 125.0, "float32": 62.5},
        "A30": {"bfloat16": 165.0, "float32": 82.0},
        "A40": {"bfloat16": 149.7, "float32": 74.8},
        "L40S": {"bfloat16": 362.0, "float32": 183.0},
        "L40": {"bfloat16": 181.0, "float32": 90.5},
        "L4": {"bfloat16": 121.0, "float32": 60.0},
        "T4": {"float32": 8.1},
        "V100": {"float32": 15.7},
        "RTX 4090": {"bfloat16": 165.2, "float32": 82.6},
        "RTX 3090": {"bfloat16": 71.0, "float32": 35.6},
    }
)
"""Dense peak of matrix multiplication by part of the device's name and precision (float32: with TensorFloat-32 where
there is such), from NVIDIA's data sheets. More specific names come first."""


def flops_per_token(architecture: Architecture, context_length: int) -> float:
    """Floating-point operations of forward and backward pass for one token.

    Position embeddings are added and never multiplied with; token embeddings are, in the last projection, unless that
    is a separate matrix.
    """
    sizes = architecture.layers
    added = sizes.n_ctx + (0 if architecture.variant.tie_word_embeddings else architecture.vocabulary_size)
    multiplied = count_parameters(architecture) - added * sizes.n_embd
    return 6.0 * multiplied + 12.0 * sizes.n_layer * sizes.n_embd * context_length


def peak_flops(device_names: list[str], precision: str, setting: float) -> float:
    """Peak FLOP/s of all devices together; 0 where it is unknown.

    Args:
        device_names: Name of each device.
        precision: `float32` or `bfloat16`.
        setting: Peak FLOP/s of one device by a setting; 0: by its name.
    """
    return sum(setting or _peak_of(name, precision) for name in device_names)


def _peak_of(name: str, precision: str) -> float:
    for part, speeds in PEAK_TFLOPS.items():
        if part in name:
            return speeds.get(precision, 0.0) * 1e12
    return 0.0
