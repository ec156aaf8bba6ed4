"""Versions of a model side by side: what was measured and set, what they are made of, and what they write."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpt2_common.errors import NotFound
from gpt2_registry.evaluations import ComparedEvaluation, compare_evaluations
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.mlflow_registry import MlflowRegistry, RegisteredVersion
from gpt2_registry.registration import SAMPLES_FILE
from gpt2_registry.side_by_side import side_by_side

_LINEAGE = ("model_digest", "checkpoint_digest", "dataset_digest", "tokenizer_digest", "logs_digest")
_LONGEST_SAMPLES = 20_000

Row = tuple[str, Sequence[str]]
"""A fact's name, and its value in each version; empty where a version lacks it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Versions side by side; values are in the order of the versions."""

    versions: Sequence[RegisteredVersion]
    metrics: Sequence[tuple[str, Sequence[float]]]
    """Those that any version has; NaN where one lacks it."""
    parameters: Sequence[Row]
    """Those that differ."""
    lineage: Sequence[Row]
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
        metrics=side_by_side([version.metrics for version in versions], math.nan),
        parameters=[row for row in side_by_side([fact.parameters for fact in facts], "") if len(set(row[1])) > 1],
        lineage=side_by_side([_lineage(version) for version in versions], ""),
        samples=[fact.samples for fact in facts],
        evaluations=compare_evaluations(versions),
    )


def _lineage(version: RegisteredVersion) -> Mapping[str, str]:
    return {name: version.tags[f"gpt2.{name}"] for name in _LINEAGE if f"gpt2.{name}" in version.tags}


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
    return _RunFacts(run.data.params, samples[:_LONGEST_SAMPLES])
