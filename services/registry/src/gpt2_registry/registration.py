"""What MLflow is told about a model: parameters, metrics over steps, tags and files, read from the artifacts.

`model.json` and `metrics.jsonl` are the trainer's. What either lacks is left out, so that models made elsewhere in the
same layout can be registered too.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpt2_common.artifacts import Artifact
from gpt2_common.errors import DataLoss, FailedPrecondition

SAMPLES_FILE = "samples.txt"
"""Where the texts that a model generated are in its run."""

_LONGEST_PARAMETER = 6000
_GREATEST_EXPONENT = 700.0
_SHAPE = {"n_layer": "layers", "n_head": "heads", "n_embd": "wide", "n_ctx": "tokens of context"}
_LINEAGE = ("checkpoint_digest", "dataset_digest", "tokenizer_digest")
_COURSE = ("validation_loss", "step", "last_validation_loss", "last_step", "ended_worse", "warnings")
_SERVED = {"saved_model": "saved_model", "tokenizer": "tokenizer.json", "config": "config.json"}
_PROVENANCE = "model.json"
_METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric."""

    name: str
    value: float
    step: int


def predictive_figures(validation_loss: float) -> dict[str, float]:
    """Metrics that say how well a model predicts, of its loss in nats per token."""
    perplexity = math.exp(min(validation_loss, _GREATEST_EXPONENT))
    return {"validation_loss": validation_loss, "validation_perplexity": perplexity}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model artifact says of itself.

    Args:
        artifact: The model.
        provenance: Content of its `model.json`.
    """

    artifact: Artifact
    provenance: Mapping[str, Any]

    @property
    def validation_loss(self) -> float | None:
        """Nats per token; None where nobody measured it."""
        return _number(self.provenance.get("validation_loss"))

    @property
    def initial_validation_loss(self) -> float | None:
        """Nats per token, before training; None where nobody measured it."""
        return _number(self.provenance.get("initial_validation_loss"))

    @property
    def last_validation_loss(self) -> float | None:
        """Nats per token at the end of the training; None where nobody measured it, or it is no finite number."""
        return _number(self.provenance.get("last_validation_loss"))

    @property
    def last_step(self) -> int:
        """Step at the end of the training; 0 where that is not known."""
        return int(_number(self.provenance.get("last_step")) or 0)

    @property
    def ended_worse(self) -> bool:
        """Whether the training ended with a higher validation loss than it began with, or with no finite one."""
        return self.provenance.get("ended_worse") is True

    @property
    def warnings(self) -> list[str]:
        """What the training warned of."""
        return str(self.provenance.get("warnings") or "").splitlines()

    @property
    def step(self) -> int:
        """Step of the training that its weights are from; 0 where that is not known."""
        return int(_number(self.provenance.get("step")) or 0)

    def figures(self) -> dict[str, float]:
        """How well the weights that are registered predict, as far as it was measured."""
        return {} if self.validation_loss is None else predictive_figures(self.validation_loss)

    def parameters(self) -> dict[str, str]:
        """Parameters of an MLflow run: how the model was trained, and its sizes."""
        parts = {
            "train": self.provenance.get("train_config"),
            "model": self.provenance.get("architecture") or self.provenance.get("model_config"),
            "": {name: self.provenance.get(name) for name in ("parameters", "source", "step")},
        }
        return {
            name: str(value)[:_LONGEST_PARAMETER]
            for prefix, content in parts.items()
            for name, value in _flat(prefix, content or {})
            if value is not None
        }

    def tags(self) -> dict[str, str]:
        """Where the model comes from."""
        tags = {"gpt2.model_digest": self.artifact.digest, "gpt2.model_artifact": self.artifact.uri}
        for name in (*_LINEAGE, *_COURSE):
            value = self.provenance.get(name)
            if value is not None:
                tags[f"gpt2.{name}"] = str(value)
        return tags

    def summary(self) -> str:
        """What the model is and how well it predicts, in Markdown, for those who open it in MLflow."""
        sizes = self.provenance.get("architecture") or self.provenance.get("model_config") or {}
        shape = ", ".join(f"{sizes[key]} {name}" for key, name in _SHAPE.items() if key in sizes)
        parameters = _number(self.provenance.get("parameters"))
        lines = [f"GPT-2 of {parameters:,.0f} parameters" if parameters else "GPT-2"]
        lines[0] += f" ({shape})." if shape else "."
        if self.validation_loss is not None:
            before = self.initial_validation_loss
            change = f" (before training {before:.3f})" if before is not None else ""
            step = f" at step {self.step:,}" if "step" in self.provenance else ""
            lines.append(f"Validation loss **{self.validation_loss:.3f}** nats per token{step}{change}.")
            if self.last_validation_loss is not None and self.last_step != self.step:
                lines[-1] += f" At the end of the training, step {self.last_step:,}: {self.last_validation_loss:.3f}."
        lines += [f"**Warning:** {text}" for text in self.warnings]
        lineage = [
            f"{name.removesuffix('_digest')} `{self.provenance[name]}`"
            for name in _LINEAGE
            if self.provenance.get(name)
        ]
        if lineage:
            lines.append(f"Made from {', '.join(lineage)}.")
        return "\n\n".join(lines)

    def initial_metrics(self) -> Iterator[MetricPoint]:
        """The validation losses before and at the end of the training, to compare that of the weights with."""
        if (loss := self.initial_validation_loss) is not None:
            yield MetricPoint("initial_validation_loss", loss, 0)
        if (loss := self.last_validation_loss) is not None:
            yield MetricPoint("last_validation_loss", loss, self.last_step)

    def metrics(self) -> Iterator[MetricPoint]:
        """What `model.json` says was measured, for models without training logs."""
        validations = self.provenance.get("validations") or []
        for item in validations:
            if (loss := _number(item.get("loss"))) is not None:
                yield MetricPoint("validation_loss", loss, int(item.get("step", 0)))
        if not validations and self.validation_loss is not None:
            yield MetricPoint("validation_loss", self.validation_loss, self.step)

    def samples(self) -> list[str]:
        """Texts that the model generated when it was exported."""
        return [str(text) for text in self.provenance.get("samples") or []]

    def samples_text(self) -> str:
        """The samples one after another, each under its number."""
        return "\n\n".join(f"--- sample {number} ---\n{text}" for number, text in enumerate(self.samples(), 1))

    def served_files(self) -> dict[str, str]:
        """URIs of what the served model needs, by the name that it knows them by."""
        return {name: (self.artifact.folder / path).as_uri() for name, path in _SERVED.items()}


def read_model(artifact: Artifact) -> ModelFacts:
    """Reads what a model says of itself.

    Raises:
        FailedPrecondition: It lacks what serving needs.
        DataLoss: `model.json` is damaged.
    """
    needed = ("saved_model/saved_model.pb", *(path for path in _SERVED.values() if path != "saved_model"))
    missing = [path for path in needed if not (artifact.folder / path).is_file()]
    if missing:
        raise FailedPrecondition(f"model_uri: {artifact.uri} lacks {', '.join(missing)}: make it with ExportModel")
    path = artifact.folder / _PROVENANCE
    if not path.is_file():
        return ModelFacts(artifact, {})
    content = _parsed(path.read_text(encoding="utf-8"), f"{artifact.uri}/{_PROVENANCE}")
    return ModelFacts(artifact, content)


def read_metrics(logs: Artifact) -> Iterator[MetricPoint]:
    """Reads the metrics of a training, in the order of their steps. Values that are no finite numbers are left out.

    Raises:
        FailedPrecondition: The artifact has no metrics.
        DataLoss: A line is damaged.
    """
    path = logs.folder / _METRICS
    if not path.is_file():
        raise FailedPrecondition(f"logs_uri: {logs.uri} has no {_METRICS}: name the output `logs` of TrainModel")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            yield from _points(_parsed(line, f"{logs.uri}/{_METRICS}, line {number}"))


def _points(report: Mapping[str, Any]) -> Iterator[MetricPoint]:
    step = int(_number(report.get("step")) or 0)
    for name, content in report.items():
        value = _number(content)
        if name != "step" and value is not None:
            yield MetricPoint(name, value, step)


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataLoss(f"{where} is damaged ({error}): make the artifact again") from error
    if not isinstance(content, dict):
        raise DataLoss(f"{where} is damaged (no object): make the artifact again")
    return content


def _number(value: Any) -> float | None:
    """A finite number as it is; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _flat(prefix: str, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of nested objects, joined by dots."""
    for name, value in content.items():
        full = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping):
            yield from _flat(full, value)
        else:
            yield full, value
