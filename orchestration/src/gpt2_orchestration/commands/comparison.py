"""`gpt2 models compare` and `evaluate`: versions compared, also on data that they were not trained on."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from gpt2.jobs.v1 import job_pb2
from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2.trainer.v1.trainer_service_pb2 import EvaluateModelRequest, GenerateRequest
from gpt2_orchestration.client.registered_models import (
    REFERENCE_HELP,
    SHORT_DIGEST,
    find_version,
    place,
    registered_uri,
)
from gpt2_orchestration.client.service_client import ClientSettings, ServiceClient, connect
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.output import JsonOption, as_json, print_json
from gpt2_orchestration.commands.tables import print_table
from gpt2_orchestration.pipelines.requests import run_job

DatasetOption = Annotated[
    str, typer.Option("--dataset", help="URI of a dataset: measure perplexity on its validation split.")
]
LambadaOption = Annotated[
    str, typer.Option("--lambada", help="URI of JSON lines with `text`, as LAMBADA has: measure last-word accuracy.")
]

_COMPARED_TOKENS = 40
_KEY_CHARACTERS = 16


@shows_errors
def evaluate(
    model: Annotated[str, typer.Argument(help=REFERENCE_HELP)],
    dataset: DatasetOption = "",
    lambada: LambadaOption = "",
    json: JsonOption = False,
) -> None:
    """Measure a version on a dataset or on LAMBADA, and record the metrics with it."""
    if not dataset and not lambada:
        raise UsageError("set --dataset, --lambada or both")
    with connect("registry", _settings()) as registry:
        version = find_version(registry, model)
        metrics = _measure(registry, version, dataset, lambada)
    if json:
        print_json(metrics)
    else:
        print_table(("metric", "value"), [(name, f"{value:.6g}") for name, value in metrics.items()], version.model_uri)


@shows_errors
def compare(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    versions: Annotated[list[int], typer.Argument(help="Numbers of its versions, two or more.")],
    samples: Annotated[bool, typer.Option("--samples", help="Show the samples of each, too.")] = False,
    prompt: Annotated[
        list[str], typer.Option(help="Show each version's completion of this prompt, with the same seed. Repeatable.")
    ] = [],  # noqa: B006 - Typer's form of an empty default
    seed: Annotated[int, typer.Option(help="Seed of the completions.")] = 0,
    dataset: DatasetOption = "",
    lambada: LambadaOption = "",
    json: JsonOption = False,
) -> None:
    """Compare versions: metrics, evaluations, parameters that differ, digests, samples."""
    request = pb.CompareModelsRequest(model_name=name, versions=versions)
    with connect("registry", _settings()) as registry:
        found = registry.call("CompareModels", request)
        if dataset or lambada:
            for version in found.model_versions:
                _measure(registry, version, dataset, lambada)
            found = registry.call("CompareModels", request)
    written = {text: _completions(found.model_versions, text, seed) for text in prompt}
    if json:
        print_json({**as_json(found), "continuations": written})
        return
    rows = [["labels", *(", ".join(item.labels) for item in found.model_versions)]]
    rows += [
        [f"{metric.name} on {place(evaluation.measurement)}", *map(_format, metric.values)]
        for evaluation in found.evaluations
        for metric in evaluation.metrics
    ]
    rows += [[row.name, *map(_format, row.values)] for row in found.metrics]
    rows += [[row.name, *row.values] for row in found.parameters]
    rows += [[row.name, *(value[:SHORT_DIGEST] for value in row.values)] for row in found.lineage]
    if samples:
        rows.append(["samples", *found.samples])
    rows += [[text, *texts] for text, texts in written.items()]
    print_table(("", *(f"version {item.version}" for item in found.model_versions)), rows, name)


def _settings() -> ClientSettings:
    return client_settings()


def _trainer() -> AbstractContextManager[ServiceClient]:
    return connect("trainer", _settings())


def _measure(registry: ServiceClient, version: pb.ModelVersion, dataset: str, lambada: str) -> Mapping[str, float]:
    """Evaluates a version and records the metrics with it; an existing evaluation on the same data is reused."""
    request = EvaluateModelRequest(model_uri=registered_uri(version), dataset_uri=dataset, lambada_uri=lambada)
    key = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()[:_KEY_CHARACTERS]
    request.job.CopyFrom(job_pb2.JobOptions(job_id=f"evaluation-{key}/EvaluateModel", retry_failed=True))
    with _trainer() as trainer:
        [output] = run_job(trainer, "EvaluateModel", request).outputs
    record = pb.RecordEvaluationRequest(
        model_name=version.model_name, version=version.version, evaluation_uri=output.uri
    )
    registry.call("RecordEvaluation", record)
    return {name: float(value) for name, value in output.properties.items()}


def _completions(versions: Sequence[pb.ModelVersion], prompt: str, seed: int) -> list[str]:
    """Each version's completion of a prompt, generated by the trainer."""
    with _trainer() as trainer:
        requests = (
            GenerateRequest(model_uri=registered_uri(item), prompt=prompt, seed=seed, max_tokens=_COMPARED_TOKENS)
            for item in versions
        )
        return ["".join(piece.text for piece in trainer.stream("Generate", request)) for request in requests]


def _format(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
