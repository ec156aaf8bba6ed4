"""Evaluations of registered models, made after their training and kept as tags of their versions.

A tag's name identifies the measurement: a repeated measurement replaces the tag, and two different ones that are
recorded at once do not interfere.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from gpt2_common.artifacts import Artifact
from gpt2_common.errors import FailedPrecondition
from gpt2_contracts.artifact import CHECKPOINT, MODEL
from gpt2_contracts.evaluation import EvaluationReport, Measurement
from gpt2_contracts.model_version import EVALUATION_TAG_PREFIX, MODEL_DIGEST_TAG, fact_tag
from gpt2_registry.mlflow_registry import MlflowRegistry, RegisteredVersion

_KEY_LENGTH = 16


def measurement_key(measurement: Measurement) -> str:
    """Identifies a measurement by everything but where its data lies."""
    parts = [measurement.kind, measurement.digest, measurement.context_length, measurement.sequences]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_KEY_LENGTH]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Metrics of one measurement of one model."""

    measurement: Measurement
    metrics: Mapping[str, float]
    evaluation_uri: str
    recorded_millis: int
    """Milliseconds since 1970."""

    def to_tag(self) -> tuple[str, str]:
        """The tag's name and value."""
        content = {
            "measurement": self.measurement.to_json(),
            "metrics": dict(self.metrics),
            "evaluation_uri": self.evaluation_uri,
            "recorded_millis": self.recorded_millis,
        }
        name = EVALUATION_TAG_PREFIX + measurement_key(self.measurement)
        return name, json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_tag(cls, value: str) -> "Evaluation | None":
        """Reads the value of a tag; None where somebody has changed it."""
        try:
            content = json.loads(value)
            return cls(
                measurement=Measurement.from_json(content["measurement"]),
                metrics=_floats(content["metrics"]),
                evaluation_uri=str(content["evaluation_uri"]),
                recorded_millis=int(content["recorded_millis"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def record(registry: MlflowRegistry, model_name: str, number: int, evaluation: Artifact, now_millis: int) -> None:
    """Records an evaluation at the version whose model it measured.

    Args:
        registry: The models.
        model_name: Whose version.
        number: Which.
        evaluation: The output of EvaluateModel.
        now_millis: Milliseconds since 1970.

    Raises:
        NotFound: There is no such version.
        FailedPrecondition: It measured another model, or lacks its report, as those of early releases do.
        DataLoss: The artifact's content is damaged.
    """
    version = registry.version(model_name, number)
    _require_same_model(version, evaluation)
    if not (evaluation.folder / EvaluationReport.FILE).is_file():
        raise FailedPrecondition(
            f"evaluation_uri: {evaluation.uri} has no {EvaluationReport.FILE}: evaluate the model again"
        )
    for measurement, metrics in evaluation.read(EvaluationReport).measurements:
        recorded = Evaluation(
            measurement=measurement,
            metrics=_floats(metrics),
            evaluation_uri=evaluation.uri,
            recorded_millis=now_millis,
        )
        registry.set_version_tag(model_name, number, *recorded.to_tag())


def evaluations(version: RegisteredVersion) -> list[Evaluation]:
    """The evaluations of a version, in the order of their measurements; tags that others have changed are ignored."""
    tags = (value for name, value in version.tags.items() if name.startswith(EVALUATION_TAG_PREFIX))
    found = [evaluation for tag in tags if (evaluation := Evaluation.from_tag(tag)) is not None]
    return sorted(found, key=lambda evaluation: evaluation.measurement)


def _require_same_model(version: RegisteredVersion, evaluation: Artifact) -> None:
    """Raises FailedPrecondition unless the version's model was measured, or the checkpoint it was exported from."""
    own = {version.tags.get(MODEL_DIGEST_TAG), version.tags.get(fact_tag("checkpoint_digest"))} - {None}
    measured = [parent for parent in evaluation.manifest.parents if parent.kind in (MODEL, CHECKPOINT)]
    if not any(parent.digest in own for parent in measured):
        what = ", ".join(parent.uri for parent in measured) or "no model"
        raise FailedPrecondition(
            f"evaluation_uri: {evaluation.uri} measured {what}, which is not the model of version {version.version} of "
            f"{version.model_name}: evaluate that version's model"
        )


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {str(name): float(value) for name, value in metrics.items()}
