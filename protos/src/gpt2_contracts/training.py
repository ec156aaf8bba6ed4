"""What a training makes: the properties of its checkpoint, and the files of its logs and samples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

METRICS_FILE = "metrics.jsonl"
"""In the logs: one JSON object a line, with `step` and metrics by name; see gpt2_contracts.metrics."""
SAMPLES_TAG = "samples"
"""TensorBoard's tag of the texts of a round of samples."""
SAMPLES_PATTERN = "samples-*.txt"

INDEXED: Mapping[str, type] = MappingProxyType({"step": int, "parameters": int, "validation_loss": float})
"""Counts and properties of a checkpoint that pipelines keep in their metadata."""


def samples_name(step: int) -> str:
    """File name of the texts that a model wrote after a number of steps."""
    return f"samples-{step}.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What the manifest of a checkpoint says of the training; losses are in nats per token.

    Of a checkpoint that was imported, or made by an earlier release, what is not known is None.
    """

    step: int | float | None = None
    """Step of the weights that were kept."""
    last_step: int | float | None = None
    stopped_because: str = ""
    skipped_steps: int = 0
    validation_loss: int | float | None = None
    last_validation_loss: int | float | None = None
    initial_validation_loss: int | float | None = None
    validation_bits_per_byte: int | float | None = None
    """None too where the dataset carries no tokenizer, which says how many bytes a token has."""
    regressed: bool | None = None
    """Whether the last validation loss is higher than the initial one, or not finite."""
    dataset_digest: str = ""
    tokenizer_digest: str = ""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """The content of the checkpoint's `config.json`."""
    warnings: tuple[str, ...] = ()

    def to_properties(self) -> dict[str, str]:
        """The manifest's properties."""
        facts: dict[str, Any] = {
            "step": self.step,
            "last_step": self.last_step,
            "stopped_because": self.stopped_because,
            "skipped_steps": self.skipped_steps,
            "validation_loss": self.validation_loss,
            "last_validation_loss": self.last_validation_loss,
            "initial_validation_loss": self.initial_validation_loss,
            "regressed": str(self.regressed).lower(),
            "dataset_digest": self.dataset_digest,
            "tokenizer_digest": self.tokenizer_digest,
            **self.architecture,
        }
        if self.validation_bits_per_byte is not None:
            facts["validation_bits_per_byte"] = self.validation_bits_per_byte
        if self.warnings:
            facts["warnings"] = "\n".join(self.warnings)
        return {name: str(value) for name, value in facts.items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Self:
        """Reads the properties; `architecture` is left out, as `config.json` has it."""
        return cls(
            step=_number(properties.get("step")),
            last_step=_number(properties.get("last_step")),
            stopped_because=properties.get("stopped_because", ""),
            skipped_steps=int(_number(properties.get("skipped_steps")) or 0),
            validation_loss=_number(properties.get("validation_loss")),
            last_validation_loss=_number(properties.get("last_validation_loss")),
            initial_validation_loss=_number(properties.get("initial_validation_loss")),
            validation_bits_per_byte=_number(properties.get("validation_bits_per_byte")),
            regressed={"true": True, "false": False}.get(properties.get("regressed", "")),
            dataset_digest=properties.get("dataset_digest", ""),
            tokenizer_digest=properties.get("tokenizer_digest", ""),
            warnings=tuple(properties.get("warnings", "").splitlines()),
        )


def _number(text: str | None) -> int | float | None:
    """A finite number, whole ones as int; None where there is none."""
    value = float(text) if text else math.nan
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value
