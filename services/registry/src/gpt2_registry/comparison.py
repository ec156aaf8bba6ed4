"""Comparison of a model's versions: metrics, parameters, lineage, samples and evaluations, aligned by name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gpt2_common.errors import NotFound
from gpt2_contracts.evaluation import Measurement
from gpt2_contracts.model import DIGESTS
from gpt2_contracts.model_version import LOGS_DIGEST_TAG, MODEL_DIGEST_TAG, TAG_PREFIX, fact_tag
from gpt2_registry.evaluations import evaluations, measurement_key
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.mlflow_registry import MlflowRegistry, RegisteredVersion
from gpt2_registry.model_metadata import SAMPLES_FILE

_LINEAGE_TAGS = (MODEL_DIGEST_TAG, *map(fact_tag, DIGESTS), LOGS_DIGEST_TAG)
_MAX_SAMPLES_CHARACTERS = 20_000

Value = TypeVar("Value")
Row = tuple[str, Sequence[Value]]
"""A name, and its value in each version, in the order of the versions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedEvaluation:
    """Metrics of one measurement; NaN where a version was not measured so."""

    measurement: Measurement
    metrics: Sequence[Row[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Versions, and what is known of them."""

    versions: Sequence[RegisteredVersion]
    metrics: Sequence[Row[float]]
    """Those that any version has; NaN where one lacks it."""
    parameters: Sequence[Row[str]]
    """Those that differ; empty where a version lacks one."""
    lineage: Sequence[Row[str]]
    """Digests of what the models were made from; empty where one is not known."""
    samples: Sequence[str]
    evaluations: Sequence[ComparedEvaluation]


@dataclass(frozen=True, slots=True)
class _RunFacts:
    parameters: Mapping[str, str]
    samples: str


def compare(registry: MlflowRegistry, model_name: str, numbers: Sequence[int]) -> Comparison:
    """Compares versions of one model.

    Raises:
        NotFound: One of them is missing.
        Unavailable: MLflow does not answer.
    """
    versions = [registry.version(model_name, number) for number in numbers]
    facts = [_run_facts(registry.connection, version.run_id) for version in versions]
    return Comparison(
        versions=versions,
        metrics=_aligned([version.metrics for version in versions], math.nan),
        parameters=[row for row in _aligned([fact.parameters for fact in facts], "") if len(set(row[1])) > 1],
        lineage=_aligned([_lineage(version) for version in versions], ""),
        samples=[fact.samples for fact in facts],
        evaluations=compare_evaluations(versions),
    )


def compare_evaluations(versions: Sequence[RegisteredVersion]) -> list[ComparedEvaluation]:
    """Aligns the evaluations of versions by their measurements."""
    columns = [{measurement_key(item.measurement): item for item in evaluations(version)} for version in versions]
    measurements = {key: item.measurement for column in columns for key, item in column.items()}
    return [
        ComparedEvaluation(
            measurement=measurement,
            metrics=_aligned([column[key].metrics if key in column else {} for column in columns], math.nan),
        )
        for key, measurement in sorted(measurements.items(), key=lambda item: item[1])
    ]


def _aligned(columns: Sequence[Mapping[str, Value]], missing: Value) -> list[Row[Value]]:
    """Rows in the order of their names, with a value for what a version lacks."""
    names = sorted({name for column in columns for name in column})
    return [(name, [column.get(name, missing) for column in columns]) for name in names]


def _lineage(version: RegisteredVersion) -> Mapping[str, str]:
    return {tag.removeprefix(TAG_PREFIX): version.tags[tag] for tag in _LINEAGE_TAGS if tag in version.tags}


def _run_facts(connection: MlflowConnection, run_id: str) -> _RunFacts:
    """Parameters and samples of a run; a run that was deleted has none."""
    import mlflow

    try:
        with connection.client() as client:
            run = client.get_run(run_id)
            samples = ""
            if any(file.path == SAMPLES_FILE for file in client.list_artifacts(run_id)):
                samples = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{SAMPLES_FILE}")
    except NotFound:
        return _RunFacts({}, "")
    return _RunFacts(run.data.params, samples[:_MAX_SAMPLES_CHARACTERS])
