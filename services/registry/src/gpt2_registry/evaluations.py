"""What was measured of registered models after their training, kept at their versions to be compared.

Each is one tag of the version, whose name says how it was measured: measured again the same way, it is replaced, and
two that are recorded at once do not meet.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt2_common.artifacts import Artifact
from gpt2_common.errors import DataLoss, FailedPrecondition
from gpt2_registry.mlflow_registry import MlflowRegistry, RegisteredVersion
from gpt2_registry.side_by_side import side_by_side

EVALUATION_TAG = "gpt2.evaluation."
"""Where the names of the tags begin."""

_MEASUREMENTS_FILE = "evaluation.json"
_KEY_LENGTH = 16


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Measurement:
    """On what, and how, a model was measured. Figures of the same one can be compared."""

    kind: str
    """`dataset` or `last_words`."""
    uri: str
    digest: str
    context_length: int = 0
    """Tokens in a sequence; 0 for last words."""
    sequences: int = 0
    """How many of the dataset's; 0 for last words."""

    @property
    def key(self) -> str:
        """What tells it from others: all but where the data lies."""
        told = json.dumps([self.kind, self.digest, self.context_length, self.sequences])
        return hashlib.sha256(told.encode()).hexdigest()[:_KEY_LENGTH]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Figures of one measurement of one model."""

    measurement: Measurement
    figures: Mapping[str, float]
    evaluation_uri: str
    recorded_millis: int
    """Milliseconds since 1970."""

    def to_tag(self) -> tuple[str, str]:
        """The tag's name and value."""
        return EVALUATION_TAG + self.measurement.key, json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedEvaluation:
    """One measurement's figures of several versions, in their order; NaN where one was not measured."""

    measurement: Measurement
    figures: Sequence[tuple[str, Sequence[float]]]


def record(registry: MlflowRegistry, model_name: str, number: int, evaluation: Artifact, now_millis: int) -> None:
    """Records an evaluation at the version whose model it measured.

    Args:
        registry: The models.
        model_name: Whose version.
        number: Which.
        evaluation: What EvaluateModel has made.
        now_millis: Milliseconds since 1970.

    Raises:
        NotFound: There is no such version.
        FailedPrecondition: It measured another model, or was made before evaluations said how they were measured.
        DataLoss: The artifact's content is damaged.
    """
    version = registry.version(model_name, number)
    _require_same_model(version, evaluation)
    for measurement, figures in _read(evaluation):
        measured = Evaluation(
            measurement=measurement, figures=figures, evaluation_uri=evaluation.uri, recorded_millis=now_millis
        )
        registry.set_version_tag(model_name, number, *measured.to_tag())


def evaluations(version: RegisteredVersion) -> list[Evaluation]:
    """What was recorded at a version, in the order of the measurements. A tag that others have changed is left out."""
    tags = (value for name, value in version.tags.items() if name.startswith(EVALUATION_TAG))
    found = [evaluation for tag in tags if (evaluation := _from_tag(tag)) is not None]
    return sorted(found, key=lambda evaluation: evaluation.measurement)


def compare_evaluations(versions: Sequence[RegisteredVersion]) -> list[ComparedEvaluation]:
    """Puts what was measured of any of the versions side by side."""
    columns = [{found.measurement.key: found for found in evaluations(version)} for version in versions]
    measurements = {key: found.measurement for column in columns for key, found in column.items()}
    return [
        ComparedEvaluation(
            measurement=measurement,
            figures=side_by_side([column[key].figures if key in column else {} for column in columns], math.nan),
        )
        for key, measurement in sorted(measurements.items(), key=lambda item: item[1])
    ]


def _require_same_model(version: RegisteredVersion, evaluation: Artifact) -> None:
    """Raises FailedPrecondition unless the version's model was measured, or the checkpoint it was exported from."""
    ours = {version.tags.get("gpt2.model_digest"), version.tags.get("gpt2.checkpoint_digest")} - {None}
    measured = [parent for parent in evaluation.manifest.parents if parent.kind in ("model", "checkpoint")]
    if not any(parent.digest in ours for parent in measured):
        what = ", ".join(parent.uri for parent in measured) or "no model"
        raise FailedPrecondition(
            f"evaluation_uri: {evaluation.uri} measured {what}, which is not the model of version {version.version} of "
            f"{version.model_name}: evaluate that version's model"
        )


def _read(evaluation: Artifact) -> list[tuple[Measurement, Mapping[str, float]]]:
    path = evaluation.folder / _MEASUREMENTS_FILE
    if not path.is_file():
        raise FailedPrecondition(
            f"evaluation_uri: {evaluation.uri} has no {_MEASUREMENTS_FILE}: evaluate the model again"
        )
    try:
        return [_measurement(content) for content in json.loads(path.read_text(encoding="utf-8"))["measurements"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLoss(
            f"{evaluation.uri}/{_MEASUREMENTS_FILE} is damaged ({error!r}): evaluate the model again"
        ) from error


def _measurement(content: Mapping[str, Any]) -> tuple[Measurement, Mapping[str, float]]:
    measurement = Measurement(
        kind=str(content["kind"]),
        uri=str(content["uri"]),
        digest=str(content["digest"]),
        context_length=int(content.get("context_length", 0)),
        sequences=int(content.get("sequences", 0)),
    )
    return measurement, {str(name): float(value) for name, value in content["figures"].items()}


def _from_tag(tag: str) -> Evaluation | None:
    try:
        content = json.loads(tag)
        measurement, figures = _measurement({**content["measurement"], "figures": content["figures"]})
        return Evaluation(
            measurement=measurement,
            figures=figures,
            evaluation_uri=str(content["evaluation_uri"]),
            recorded_millis=int(content["recorded_millis"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
