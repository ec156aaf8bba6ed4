"""What MLflow records of a model: parameters, metrics over steps, tags and files, read from the artifacts.

What an artifact lacks is left out, so that models made by other tools in the same layout can be registered too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpt2_common.artifacts import Artifact
from gpt2_common.errors import DataLoss, FailedPrecondition
from gpt2_contracts.artifact import finite_number
from gpt2_contracts.metrics import (
    INITIAL_VALIDATION_LOSS,
    LAST_VALIDATION_LOSS,
    VALIDATION_BITS_PER_BYTE,
    VALIDATION_LOSS,
    VALIDATION_PERPLEXITY,
    parse_line,
    perplexity,
)
from gpt2_contracts.model import DIGESTS, REQUIRED_FILES, SERVED_FILES, ModelDescription
from gpt2_contracts.model_version import MODEL_ARTIFACT_TAG, MODEL_DIGEST_TAG, fact_tag
from gpt2_contracts.training import METRICS_FILE

SAMPLES_FILE = "samples.txt"
"""File of a run with the texts that the model generated."""

_MAX_PARAMETER = 6000
_SIZES = {"n_layer": "layers", "n_head": "heads", "n_embd": "wide", "n_ctx": "tokens of context"}
_TAGGED = (
    *DIGESTS,
    VALIDATION_LOSS,
    VALIDATION_BITS_PER_BYTE,
    "step",
    LAST_VALIDATION_LOSS,
    "last_step",
    "regressed",
    "warnings",
)


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric."""

    name: str
    value: float
    step: int


def quality_metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of registered weights, which need not be those of the training's last step.

    Args:
        facts: Values or their texts by the names in `model.json`; one that is not known is missing or None.
    """
    loss, bits = (finite_number(_as_number(facts.get(name))) for name in (VALIDATION_LOSS, VALIDATION_BITS_PER_BYTE))
    known = {} if loss is None else {VALIDATION_LOSS: float(loss), VALIDATION_PERPLEXITY: perplexity(loss)}
    return known if bits is None else {**known, VALIDATION_BITS_PER_BYTE: float(bits)}


def _as_number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model artifact, and how MLflow describes it."""

    artifact: Artifact
    description: ModelDescription

    @property
    def step(self) -> int:
        """Step of the training that the weights are from; 0 where that is not known."""
        return int(self.description.step or 0)

    @property
    def warnings(self) -> list[str]:
        """Warnings of the training."""
        return (self.description.warnings or "").splitlines()

    def quality_metrics(self) -> dict[str, float]:
        """Metrics of the registered weights, as far as they were validated."""
        return quality_metrics(self.description.facts())

    def parameters(self) -> dict[str, str]:
        """Parameters of an MLflow run: how the model was trained, and its sizes."""
        described = self.description
        parts: Mapping[str, Mapping[str, Any] | None] = {
            "train": described.train_config,
            "model": described.architecture,
            "": {"parameters": described.parameters, "source": described.source, "step": described.step},
        }
        return {
            name: str(value)[:_MAX_PARAMETER]
            for prefix, content in parts.items()
            for name, value in _flatten(prefix, content or {})
            if value is not None
        }

    def tags(self) -> dict[str, str]:
        """Tags of a version: how well the model predicts and what it was made from."""
        facts = self.description.facts()
        known = {fact_tag(name): str(facts[name]) for name in _TAGGED if facts[name] is not None}
        return {MODEL_DIGEST_TAG: self.artifact.digest, MODEL_ARTIFACT_TAG: self.artifact.uri, **known}

    def summary(self) -> str:
        """Description of a version in Markdown: size, validation loss, warnings and lineage."""
        described, sizes = self.description, self.description.architecture
        shape = ", ".join(f"{sizes[key]} {name}" for key, name in _SIZES.items() if key in sizes)
        lines = [f"GPT-2 of {described.parameters:,.0f} parameters" if described.parameters else "GPT-2"]
        lines[0] += f" ({shape})." if shape else "."
        if (loss := described.validation_loss) is not None:
            before = described.initial_validation_loss
            change = f" (before training {before:.3f})" if before is not None else ""
            step = f" at step {self.step:,}" if described.step is not None else ""
            bits = described.validation_bits_per_byte
            per_byte = "" if bits is None else f", {bits:.3f} bits per byte"
            lines.append(f"Validation loss **{loss:.3f}** nats per token{per_byte}{step}{change}.")
            last_step = int(described.last_step or 0)
            if described.last_validation_loss is not None and last_step != self.step:
                last = f"{described.last_validation_loss:.3f}"
                lines[-1] += f" At the end of the training, step {last_step:,}: {last}."
        lines += [f"**Warning:** {text}" for text in self.warnings]
        facts = described.facts()
        made_from = [f"{name.removesuffix('_digest')} `{facts[name]}`" for name in DIGESTS if facts[name]]
        if made_from:
            lines.append(f"Made from {', '.join(made_from)}.")
        return "\n\n".join(lines)

    def endpoint_metrics(self) -> Iterator[MetricPoint]:
        """The validation losses before and at the end of the training, to compare with that of the weights."""
        described = self.description
        if (loss := described.initial_validation_loss) is not None:
            yield MetricPoint(INITIAL_VALIDATION_LOSS, loss, 0)
        if (loss := described.last_validation_loss) is not None:
            yield MetricPoint(LAST_VALIDATION_LOSS, loss, int(described.last_step or 0))

    def validation_metrics(self) -> Iterator[MetricPoint]:
        """The validation losses in `model.json`, for models without training logs."""
        described = self.description
        for step, loss in described.validations:
            yield MetricPoint(VALIDATION_LOSS, loss, step)
        if not described.validations and described.validation_loss is not None:
            yield MetricPoint(VALIDATION_LOSS, described.validation_loss, self.step)

    def samples_text(self) -> str:
        """The texts that the model generated when it was exported, each under its number."""
        return "\n\n".join(
            f"--- sample {number} ---\n{text}" for number, text in enumerate(self.description.samples, 1)
        )

    def served_files(self) -> dict[str, str]:
        """URIs of the files that the served model loads, by the names in its code."""
        return {name: (self.artifact.folder / path).as_uri() for name, path in SERVED_FILES.items()}


def read_model(artifact: Artifact) -> ModelMetadata:
    """Reads the description of a model.

    Raises:
        FailedPrecondition: It lacks files that serving needs, or `model.json` is of a later version.
        DataLoss: `model.json` is damaged.
    """
    if missing := [path for path in REQUIRED_FILES if not (artifact.folder / path).is_file()]:
        raise FailedPrecondition(f"model_uri: {artifact.uri} lacks {', '.join(missing)}: make it with ExportModel")
    is_described = (artifact.folder / ModelDescription.FILE).is_file()
    return ModelMetadata(artifact, artifact.read(ModelDescription) if is_described else ModelDescription())


def read_metrics(logs: Artifact) -> Iterator[MetricPoint]:
    """Reads the finite metrics of a training, in the order of their steps.

    Raises:
        FailedPrecondition: The artifact has no metrics.
        DataLoss: A line is damaged.
    """
    path = logs.folder / METRICS_FILE
    if not path.is_file():
        raise FailedPrecondition(f"logs_uri: {logs.uri} has no {METRICS_FILE}: name the output `logs` of TrainModel")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                step, values = parse_line(line)
            except ValueError as error:
                where = f"{logs.uri}/{METRICS_FILE}, line {number}"
                raise DataLoss(f"{where} is damaged ({error}): train the model again") from error
            for name, value in values.items():
                yield MetricPoint(name, value, step)


def _flatten(prefix: str, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of nested objects, joined by dots."""
    for name, value in content.items():
        full = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping):
            yield from _flatten(full, value)
        else:
            yield full, value
