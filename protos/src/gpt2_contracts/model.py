"""The model artifact: Hugging Face's layout, a SavedModel, and `model.json`, which says how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Self

from gpt2_contracts.artifact import JsonFile, finite_number
from gpt2_contracts.tokenizer import TOKENIZER_FILE

SAVED_MODEL = "saved_model"
"""Folder of TensorFlow's SavedModel."""
CONFIG_FILE = "config.json"
"""Hugging Face's configuration; its `eos_token_id` is the end token's id."""
SERVED_FILES: Mapping[str, str] = MappingProxyType(
    {"saved_model": SAVED_MODEL, "tokenizer": TOKENIZER_FILE, "config": CONFIG_FILE}
)
"""Paths of what the registered model needs to serve, by the names that its code knows them by."""
REQUIRED_FILES = (f"{SAVED_MODEL}/saved_model.pb", TOKENIZER_FILE, CONFIG_FILE)
"""Files without which a model cannot be registered."""

DIGESTS = ("checkpoint_digest", "dataset_digest", "tokenizer_digest")
"""Digests of what a model was made from."""
INDEXED: Mapping[str, type] = MappingProxyType({"parameters": int, "validation_loss": float})
"""Counts and properties that pipelines keep in their metadata."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDescription(JsonFile):
    """The content of `model.json`; losses are in nats per token.

    Everything is optional, so that models made by other tools in the same layout can be registered too.
    """

    FILE: ClassVar[str] = "model.json"
    REMEDY: ClassVar[str] = "make the artifact again"

    step: int | float | None = None
    """Step of the training that the weights are from."""
    validation_loss: int | float | None = None
    initial_validation_loss: int | float | None = None
    """Before the training."""
    validation_bits_per_byte: int | float | None = None
    """Of the weights, on the same sequences as `validation_loss`; comparable between tokenizers."""
    last_step: int | float | None = None
    """The training's last step; later than `step` where the best weights are earlier ones."""
    last_validation_loss: int | float | None = None
    regressed: bool | None = None
    """Whether the training ended with a higher validation loss than it began with, or with none that is finite."""
    warnings: str | None = None
    """What the training warned of, one warning a line."""
    checkpoint_digest: str | None = None
    dataset_digest: str | None = None
    tokenizer_digest: str | None = None
    source: str | None = None
    """Where the first weights are from: `new`, a checkpoint's digest, or the address of an import."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the network, as in the checkpoint's `config.json`."""
    parameters: int | float | None = None
    """Number of weights."""
    validations: tuple[tuple[int, float], ...] = ()
    """Steps and their validation losses."""
    train_config: Mapping[str, Any] | None = None
    """Options of the training; None for imported weights."""
    samples: tuple[str, ...] = ()
    """Texts that the model wrote when it was exported."""

    def facts(self) -> dict[str, Any]:
        """How well the model predicts and what it was made from, as the manifest and the registry record it."""
        return {
            "step": self.step,
            "validation_loss": self.validation_loss,
            "initial_validation_loss": self.initial_validation_loss,
            "validation_bits_per_byte": self.validation_bits_per_byte,
            "last_step": self.last_step,
            "last_validation_loss": self.last_validation_loss,
            "regressed": self.regressed,
            "warnings": self.warnings,
            "checkpoint_digest": self.checkpoint_digest,
            "dataset_digest": self.dataset_digest,
            "tokenizer_digest": self.tokenizer_digest,
        }

    def to_counts(self) -> dict[str, float]:
        """The manifest's counts."""
        return {} if self.parameters is None else {"parameters": self.parameters}

    def to_properties(self) -> dict[str, str]:
        """The manifest's properties: the facts that are known."""
        return {name: str(value) for name, value in self.facts().items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """See JsonFile."""
        facts = self.facts()
        if self.validation_bits_per_byte is None:
            # As models of early releases have it.
            del facts["validation_bits_per_byte"]
        return {
            **facts,
            "source": self.source,
            "architecture": dict(self.architecture),
            "parameters": self.parameters,
            "validations": [{"step": step, "loss": loss} for step, loss in self.validations],
            "train_config": self.train_config,
            "samples": list(self.samples),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See JsonFile. A number that is not finite counts as unknown."""
        losses = [
            (int(item.get("step", 0)), finite_number(item.get("loss"))) for item in content.get("validations") or []
        ]
        return cls(
            step=finite_number(content.get("step")),
            validation_loss=finite_number(content.get("validation_loss")),
            initial_validation_loss=finite_number(content.get("initial_validation_loss")),
            validation_bits_per_byte=finite_number(content.get("validation_bits_per_byte")),
            last_step=finite_number(content.get("last_step")),
            last_validation_loss=finite_number(content.get("last_validation_loss")),
            regressed=content["regressed"] if isinstance(content.get("regressed"), bool) else None,
            warnings=_text(content.get("warnings")),
            checkpoint_digest=_text(content.get("checkpoint_digest")),
            dataset_digest=_text(content.get("dataset_digest")),
            tokenizer_digest=_text(content.get("tokenizer_digest")),
            source=_text(content.get("source")),
            # Models of early releases have the sizes under `model_config`.
            architecture=content.get("architecture") or content.get("model_config") or {},
            parameters=finite_number(content.get("parameters")),
            validations=tuple((step, float(loss)) for step, loss in losses if loss is not None),
            train_config=content.get("train_config"),
            samples=tuple(str(text) for text in content.get("samples") or ()),
        )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
