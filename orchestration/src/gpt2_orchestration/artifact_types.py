"""The artifacts of the pipeline as ML Metadata knows them.

TFX gives every artifact a folder of its own; there lies a copy of what the service said (`artifact.json`). The data is
where the service put it, under the property `artifact_uri`.
"""

from collections.abc import Mapping
from typing import Any

from tfx.types.artifact import Artifact, Property, PropertyType

_TEXT = Property(type=PropertyType.STRING)
_WHOLE = Property(type=PropertyType.INT)
_NUMBER = Property(type=PropertyType.FLOAT)
_COMMON = {"artifact_uri": _TEXT, "digest": _TEXT, "job_id": _TEXT}


class ServiceArtifact(Artifact):
    """Base of what services make."""

    TYPE_NAME = "Gpt2Artifact"
    PROPERTIES = _COMMON


class Corpus(ServiceArtifact):
    """Text, as Parquet shards."""

    TYPE_NAME = "Gpt2Corpus"
    PROPERTIES = {**_COMMON, "documents": _WHOLE, "bytes": _WHOLE, "rejected": _WHOLE}  # noqa: RUF012 - TFX's own form


class Tokenizer(ServiceArtifact):
    """A byte-level BPE vocabulary."""

    TYPE_NAME = "Gpt2Tokenizer"
    PROPERTIES = {**_COMMON, "vocabulary": _WHOLE, "fingerprint": _TEXT}  # noqa: RUF012


class Dataset(ServiceArtifact):
    """Token shards."""

    TYPE_NAME = "Gpt2Dataset"
    PROPERTIES = {  # noqa: RUF012
        **_COMMON,
        "tokens": _WHOLE,
        "train_tokens": _WHOLE,
        "validation_tokens": _WHOLE,
        "documents": _WHOLE,
    }


class Checkpoint(ServiceArtifact):
    """Weights, optimizer state and step."""

    TYPE_NAME = "Gpt2Checkpoint"
    PROPERTIES = {**_COMMON, "step": _WHOLE, "parameters": _WHOLE, "validation_loss": _NUMBER}  # noqa: RUF012


class Logs(ServiceArtifact):
    """TensorBoard event files and metrics."""

    TYPE_NAME = "Gpt2Logs"


class Samples(ServiceArtifact):
    """Text that the model wrote while it was trained."""

    TYPE_NAME = "Gpt2Samples"


class Model(ServiceArtifact):
    """A servable model."""

    TYPE_NAME = "Gpt2Model"
    PROPERTIES = {**_COMMON, "parameters": _WHOLE, "validation_loss": _NUMBER}  # noqa: RUF012


class ModelVersion(ServiceArtifact):
    """A registered version of a model."""

    TYPE_NAME = "Gpt2ModelVersion"
    PROPERTIES = {**_COMMON, "model_name": _TEXT, "version": _WHOLE, "label": _TEXT}  # noqa: RUF012


def set_properties(artifact: ServiceArtifact, values: Mapping[str, str | float]) -> None:
    """Sets the properties that the artifact's type declares; others are kept in `artifact.json` alone."""
    for name, declared in (artifact.PROPERTIES or {}).items():
        if name in values:
            setattr(artifact, name, _convert(values[name], declared.type))


def _convert(value: str | float, kind: Any) -> str | int | float:
    if kind == PropertyType.INT:
        return int(float(value))
    return float(value) if kind == PropertyType.FLOAT else str(value)
