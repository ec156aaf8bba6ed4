"""The evaluation artifact: metrics of one model, with the data that each was measured on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from gpt2_contracts.artifact import JsonFile

METRICS_FILE = "metrics.json"
"""All metrics by name, in one JSON object."""
ON_DATASET, ON_LAMBADA = "dataset", "lambada"
"""What a model can be measured on: a dataset's validation split, or texts whose last word it predicts (LAMBADA)."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Measurement:
    """The data that a model was measured on, and how. Metrics of the same measurement can be compared."""

    kind: str
    """`dataset` or `lambada`."""
    uri: str
    digest: str
    """Digest of the dataset, or SHA-256 of the file of texts."""
    context_length: int = 0
    """Tokens in a sequence; 0 for LAMBADA."""
    sequences: int = 0
    """Sequences of the validation split that were used; 0 for LAMBADA."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_json` made; other fields are ignored. Raises KeyError, TypeError or ValueError."""
        return cls(
            kind=str(content["kind"]),
            uri=str(content["uri"]),
            digest=str(content["digest"]),
            context_length=int(content.get("context_length", 0)),
            sequences=int(content.get("sequences", 0)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport(JsonFile):
    """The content of `evaluation.json`."""

    FILE: ClassVar[str] = "evaluation.json"
    REMEDY: ClassVar[str] = "evaluate the model again"

    measurements: Sequence[tuple[Measurement, Mapping[str, float]]]
    """Each with its metrics by name."""

    def metrics(self) -> dict[str, float]:
        """The metrics of all measurements."""
        return {name: value for _, metrics in self.measurements for name, value in metrics.items()}

    def to_counts(self) -> dict[str, float]:
        """The manifest's counts."""
        return {"metrics": len(self.metrics())}

    def to_properties(self) -> dict[str, str]:
        """The manifest's properties: the metrics."""
        return {name: str(value) for name, value in self.metrics().items()}

    def to_json(self) -> dict[str, Any]:
        """See JsonFile. What does not apply to a measurement is left out."""
        parts = [
            {**{name: value for name, value in measurement.to_json().items() if value != 0}, "metrics": dict(metrics)}
            for measurement, metrics in self.measurements
        ]
        return {"measurements": parts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See JsonFile."""
        return cls(measurements=[_measured(part) for part in content["measurements"]])


def _measured(part: Mapping[str, Any]) -> tuple[Measurement, Mapping[str, float]]:
    metrics = dict(part["metrics"])
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise TypeError("a metric is not numeric")
    return Measurement.from_json(part), metrics
