"""`gpt2 models compare` and `evaluate`: versions side by side, also on text that none of them was trained on."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from gpt2.jobs.v1 import job_pb2
from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2.trainer.v1.trainer_service_pb2 import EvaluateModelRequest, GenerateRequest
from gpt2_orchestration.calls import EVALUATE_MODEL
from gpt2_orchestration.client import ClientSettings, ServiceClient, connect
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.models import SHORT_DIGEST, models, place
from gpt2_orchestration.commands.output import JsonOption, as_json, print_json, print_table
from gpt2_orchestration.commands.references import REFERENCE_HELP, find_version, registered_uri
from gpt2_orchestration.pipelines.requests import run_job

DatasetOption = Annotated[
    str, typer.Option("--dataset", help="URI of a dataset: measure perplexity on its validation split.")
]
WordsOption = Annotated[
    str, typer.Option("--last-words", help="URI of JSON lines with `text`, whose last words are to be guessed.")
]

_COMPARED_TOKENS = 40
_KEY_CHARACTERS = 16


@models.command()
@shows_errors
def evaluate(
    model: Annotated[str, typer.Argument(help=REFERENCE_HELP)],
    dataset: DatasetOption = "",
    last_words: WordsOption = "",
    json: JsonOption = False,
) -> None:
    """Measure a version on a dataset, or on last words of texts, and record the figures at it."""
    if not dataset and not last_words:
        raise UsageError("name --dataset, --last-words or both")
    with connect("registry", _settings()) as registry:
        version = find_version(registry, model)
        figures = _measure(registry, version, dataset, last_words)
    if json:
        print_json(figures)
    else:
        print_table(("figure", "value"), [(name, f"{value:.6g}") for name, value in figures.items()], version.model_uri)


@models.command()
@shows_errors
def compare(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    versions: Annotated[list[int], typer.Argument(help="Numbers of its versions, two or more.")],
    samples: Annotated[bool, typer.Option("--samples", help="Show what each wrote, too.")] = False,
    prompt: Annotated[
        list[str], typer.Option(help="Show how each goes on from this, with the same seed. Repeatable.")
    ] = [],  # noqa: B006 - typer's way to say that there may be none
    seed: Annotated[int, typer.Option(help="Seed of what the prompts give.")] = 0,
    dataset: DatasetOption = "",
    last_words: WordsOption = "",
    json: JsonOption = False,
) -> None:
    """Put versions side by side: metrics, what was measured of them, parameters that differ, digests, samples."""
    request = pb.CompareModelsRequest(model_name=name, versions=versions)
    with connect("registry", _settings()) as registry:
        found = registry.call("CompareModels", request)
        if dataset or last_words:
            for version in found.model_versions:
                _measure(registry, version, dataset, last_words)
            found = registry.call("CompareModels", request)
    written = {text: _continuations(found.model_versions, text, seed) for text in prompt}
    if json:
        print_json({**as_json(found), "continuations": written})
        return
    rows = [["labels", *(", ".join(item.labels) for item in found.model_versions)]]
    rows += [
        [f"{figure.name} on {place(evaluation.measurement)}", *map(_figure, figure.values)]
        for evaluation in found.evaluations
        for figure in evaluation.figures
    ]
    rows += [[row.name, *map(_figure, row.values)] for row in found.metrics]
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


def _measure(registry: ServiceClient, version: pb.ModelVersion, dataset: str, last_words: str) -> Mapping[str, float]:
    """What EvaluateModel measures, recorded at the version.

    The same model is measured on the same data once, however often it is asked.
    """
    request = EvaluateModelRequest(model_uri=registered_uri(version), dataset_uri=dataset, last_words_uri=last_words)
    key = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()[:_KEY_CHARACTERS]
    request.job.CopyFrom(job_pb2.JobOptions(job_id=f"evaluation-{key}/EvaluateModel", retry_failed=True))
    with _trainer() as trainer:
        [output] = run_job(trainer, EVALUATE_MODEL, request).outputs
    record = pb.RecordEvaluationRequest(
        model_name=version.model_name, version=version.version, evaluation_uri=output.uri
    )
    registry.call("RecordEvaluation", record)
    return {name: float(value) for name, value in output.properties.items()}


def _continuations(versions: Sequence[pb.ModelVersion], prompt: str, seed: int) -> list[str]:
    """What each version writes after a prompt, as the trainer serves it."""
    with _trainer() as trainer:
        requests = (
            GenerateRequest(model_uri=registered_uri(item), prompt=prompt, seed=seed, max_tokens=_COMPARED_TOKENS)
            for item in versions
        )
        return ["".join(piece.text for piece in trainer.stream("Generate", request)) for request in requests]


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
