"""Metrics of a training and of a model: names, units, and the file of a training that holds them."""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gpt2_contracts.artifact import finite_number

LOSS = "loss"
VALIDATION_LOSS = "validation_loss"
INITIAL_VALIDATION_LOSS = "initial_validation_loss"
"""Before the first step of the training."""
LAST_VALIDATION_LOSS = "last_validation_loss"
"""After the last step; `validation_loss` of a model is that of the weights which were kept."""
VALIDATION_PERPLEXITY = "validation_perplexity"
BITS_PER_BYTE = "bits_per_byte"
VALIDATION_BITS_PER_BYTE = "validation_bits_per_byte"
LEARNING_RATE = "learning_rate"
GRADIENT_NORM = "gradient_norm"
TOKENS_PER_SECOND = "tokens_per_second"

UNITS: Mapping[str, str] = MappingProxyType(
    {
        LOSS: "nats per token",
        VALIDATION_LOSS: "nats per token",
        VALIDATION_PERPLEXITY: "e to the validation loss",
        VALIDATION_BITS_PER_BYTE: "bits per byte of text",
        LEARNING_RATE: "per update",
        GRADIENT_NORM: "before clipping",
        TOKENS_PER_SECOND: "tokens per second",
        "mfu": "fraction of the device's peak",
        "seconds_left": "seconds",
        "epoch": "passes over the training tokens",
        "skipped_steps": "skipped updates so far",
        "embeddings_only": "1 while the token embedding alone is trained",
    }
)
"""Unit, or meaning, of the metrics that a training logs."""

_MAX_EXPONENT = 700.0


def perplexity(loss: float) -> float:
    """E to a loss in nats; finite for every loss, as JSON has no infinity."""
    return math.exp(min(loss, _MAX_EXPONENT))


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Bits that a model needs for a byte of text, which compares models of different tokenizers.

    Args:
        loss: Mean loss in nats per token, end tokens included.
        bytes_per_token: Bytes of UTF-8 in the text, over its tokens with end tokens.
    """
    return loss / (math.log(2) * bytes_per_token)


def format_line(step: int, values: Mapping[str, float]) -> str:
    """A line of `metrics.jsonl`; NaN and infinities become null."""
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return json.dumps({"step": step, **finite}) + "\n"


def parse_line(line: str) -> tuple[int, dict[str, float]]:
    """The step and the finite metrics of a line of `metrics.jsonl`. Raises ValueError when it is no JSON object."""
    content: Any = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    step = int(finite_number(content.get("step")) or 0)
    values = {name: finite_number(value) for name, value in content.items() if name != "step"}
    return step, {name: float(value) for name, value in values.items() if value is not None}
