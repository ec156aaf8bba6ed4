"""`gpt2 export`, `tokenize` and `train`: single stages, each followed to its end.

Request fields without an option are set by their path in the proto: `--set config.clip_norm=0.5`.
"""

import json as json_text
import secrets
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import Stage, catalogue
from gpt2_orchestration.client.field_errors import FieldError, format_field_errors
from gpt2_orchestration.client.service_client import ClientSettings, connect
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.output import JsonOption, as_json, print_json
from gpt2_orchestration.pipelines.graph import PipelineStage, connect_stages
from gpt2_orchestration.pipelines.request_fields import read_request, with_limits
from gpt2_orchestration.pipelines.requests import run_job
from gpt2_orchestration.pipelines.specification import override, parse_overrides
from gpt2_orchestration.pipelines.validation import add_errors_of_services, validate_stages

RunOption = Annotated[
    str, typer.Option(help="Run id of the jobs; the same id finds jobs that exist. Default: a new id.")
]
ExportSetOption = Annotated[
    list[str], typer.Option("--set", help="PATH=VALUE of the request, such as max_rejected_fraction=0.01. Repeatable.")
]
EncodeSetOption = Annotated[
    list[str],
    typer.Option("--set", help="PATH=VALUE of EncodeCorpus's request, such as engine=ENGINE_BEAM. Repeatable."),
]
TrainSetOption = Annotated[
    list[str],
    typer.Option("--set", help="PATH=VALUE of TrainModel's request, such as config.clip_norm=0.5. Repeatable."),
]


class StageRun:
    """Stages that a command runs. All are checked before the first one starts.

    Args:
        run_id: The run that their jobs belong to; empty for a new one.
        prefix: Beginning of a new run's id.
        artifacts: URIs of artifacts that inputs take, by kind, where no stage makes one; empty URIs are ignored.
        requests: Content of each stage's request, by the name of its start call.
    """

    def __init__(
        self, run_id: str, prefix: str, artifacts: Mapping[str, str], requests: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._run_id = run_id or f"{prefix}-{secrets.token_hex(4)}"
        self._stages: list[PipelineStage] = []
        self._errors: list[FieldError] = []
        self._forms: list[tuple[Stage, Mapping[str, Any]]] = []
        self._jobs: dict[str, job_pb2.Job] = {}
        for planned in connect_stages((stage := catalogue().stages[name], stage.request()) for name in requests):
            stage, inputs = planned.declaration, planned.declaration.inputs_from_stages(planned.request)
            given = {item.field: artifacts.get(item.kind) for item in inputs if item.name not in planned.inputs}
            form = {**{name: uri for name, uri in given.items() if uri}, **requests[stage.name]}
            request, errors = read_request(form, stage, planned.inputs)
            self._forms.append((stage, form))
            self._errors += errors
            self._stages.append(replace(planned, request=request))

    def run(self) -> None:
        """Runs the stages one after the other, to their end. Ctrl-C cancels the running job.

        Raises:
            UsageError, SpecificationError: A request is invalid; nothing was started.
            ServiceError, JobFailed: A service does not answer, or a job failed.
        """
        if self._errors:
            found = add_errors_of_services(self._errors, self._forms, ClientSettings.from_environment())
            raise UsageError(format_field_errors(found))
        settings = client_settings()
        for warning in validate_stages(self._stages, settings):
            print(f"gpt2: {warning}", file=sys.stderr)
        for stage in self._stages:
            fields = {item.name: item.field for item in stage.declaration.inputs}
            for name, source in stage.inputs.items():
                made = {output.name: output.uri for output in self._jobs[source.stage].outputs}
                setattr(stage.request, fields[name], made[source.output])
            job_id = f"{self._run_id}/{stage.name}"
            options = job_pb2.JobOptions(job_id=job_id, run_id=self._run_id, retry_failed=True)
            stage.request.job.CopyFrom(options)  # type: ignore[attr-defined]
            with connect(stage.declaration.service, settings) as client:
                self._jobs[stage.name] = run_job(client, stage.name, stage.request)

    def show(self, json: bool) -> None:
        """Prints the outputs: name and URI of each artifact on a line."""
        outputs = {output.name: output.uri for job in self._jobs.values() for output in job.outputs}
        if json:
            print_json({"outputs": outputs, "jobs": [as_json(job) for job in self._jobs.values()]})
            return
        for name, uri in outputs.items():
            print(f"{name}\t{uri}")


@shows_errors
def export(
    source: Annotated[list[str] | None, typer.Argument(help="DATABASE and COLLECTIONs of MongoDB.")] = None,
    field: Annotated[str, typer.Option(help="Path or column of the text in a document. Default: text.")] = "",
    filter: Annotated[str, typer.Option(help="Query that selects documents, in MongoDB Extended JSON.")] = "",
    files: Annotated[
        list[str] | None, typer.Option(help="Read files instead: a file, folder, glob or URI. Repeatable.")
    ] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the files, such as cp1252. Default: utf-8.")] = "",
    csv_delimiter: Annotated[
        str, typer.Option(help=r"Column separator of the files, such as ';'; '\t' is a tab.")
    ] = "",
    csv_header: Annotated[
        bool, typer.Option(help="Whether the first row of .csv names the columns; else --field is a number, from 1.")
    ] = True,
    document_separator: Annotated[
        str, typer.Option(help="Separator between documents in a .txt file, such as '<|endoftext|>'.")
    ] = "",
    documents_field: Annotated[
        str, typer.Option(help="Path of the list of documents in the object of a .json file.")
    ] = "",
    list_separator: Annotated[
        str | None, typer.Option(help="Separator that joins texts where --field leads to a list, in MongoDB too.")
    ] = None,
    max_rejected: Annotated[int, typer.Option(help="Maximum number of unusable documents; -1: no limit.")] = 0,
    run: RunOption = "",
    assignments: ExportSetOption = [],  # noqa: B006 - Typer's form of an empty default
    json: JsonOption = False,
) -> None:
    """Export text from MongoDB or from files to a corpus."""
    if bool(source) == bool(files) or len(source or files or ()) < (2 if source else 1):
        raise UsageError("set DATABASE and at least one COLLECTION, or --files")
    start, fields = ("ImportFiles", _files(files)) if files else ("ExportCorpus", _mongodb(source or []))
    place = fields if files else fields["source"]
    given = {
        "encoding": encoding,
        "csv_delimiter": csv_delimiter,
        "csv_header": csv_header,
        "document_separator": document_separator,
        "documents_field": documents_field,
    }
    of_files = {name: value for name, value in given.items() if value not in ("", True)}
    if of_files and not files:
        raise UsageError(f"--{next(iter(of_files)).replace('_', '-')}: needs --files; add --files, or remove it")
    place |= {**of_files, **{name: value for name, value in (("text_field", field), ("filter", filter)) if value}}
    if list_separator is not None:
        place["list_separator"] = list_separator
    fields = override({**fields, "max_rejected": max_rejected}, parse_overrides(assignments))
    stages = StageRun(run, "export", {}, {start: fields})
    stages.run()
    stages.show(json)


@shows_errors
def tokenize(
    corpus: Annotated[str, typer.Argument(help="URI of a corpus.")],
    vocabulary_size: Annotated[
        int | None,
        typer.Option(
            help=with_limits("Train a tokenizer with a vocabulary of this size.", "TrainTokenizer", "vocabulary_size")
        ),
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="URI of an existing tokenizer artifact.")] = "",
    imported: Annotated[
        str,
        typer.Option("--import", help="`openai-gpt2`, or URI of a tokenizer in Hugging Face's or OpenAI's format."),
    ] = "",
    validation_fraction: Annotated[
        float | None,
        typer.Option(
            help=with_limits("Fraction of the documents for validation.", "EncodeCorpus", "validation_fraction")
        ),
    ] = None,
    run: RunOption = "",
    assignments: EncodeSetOption = [],  # noqa: B006
    json: JsonOption = False,
) -> None:
    """Encode a corpus as a dataset, with a new tokenizer, an existing one or OpenAI's."""
    if sum(map(bool, (vocabulary_size, tokenizer, imported))) != 1:
        raise UsageError("choose one of --vocabulary-size, --tokenizer and --import")
    given = {} if validation_fraction is None else {"validation_fraction": validation_fraction}
    fields = override(given, parse_overrides(assignments))
    requests: dict[str, Mapping[str, Any]] = {"EncodeCorpus": fields}
    if imported:
        requests["ImportTokenizer"] = {"uri": imported}
    elif vocabulary_size:
        requests["TrainTokenizer"] = {"vocabulary_size": vocabulary_size}
    stages = StageRun(run, "tokenize", {"corpus": corpus, "tokenizer": tokenizer}, requests)
    stages.run()
    stages.show(json)


@shows_errors
def train(
    dataset: Annotated[str, typer.Argument(help="URI of a dataset.")],
    size: Annotated[
        str, typer.Option(help="From scratch: one of OpenAI's sizes, or n_layer=4,n_head=4,n_embd=256.")
    ] = "",
    openai: Annotated[str, typer.Option(help="Fine-tune OpenAI's weights of this size, such as 124M.")] = "",
    tokenizer: Annotated[
        str,
        typer.Option(help="With --openai: fit the weights to the dataset's own tokenizer, by the URI of its artifact."),
    ] = "",
    checkpoint: Annotated[str, typer.Option(help="Fine-tune a checkpoint: its URI.")] = "",
    continue_: Annotated[
        str, typer.Option("--continue", help="Continue the training of a checkpoint, with its optimizer: its URI.")
    ] = "",
    steps: Annotated[
        int | None,
        typer.Option(help=with_limits("Steps; with --continue, additional ones.", "TrainModel", "config.steps")),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=with_limits("Sequences per step.", "TrainModel", "config.batch_size"))
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help=with_limits("Peak learning rate.", "TrainModel", "config.learning_rate"))
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Defaults of the options of a new model: auto, scratch, small_data; none: AdamW and a cosine. "
            "Default: auto with --size, else none."
        ),
    ] = "",
    register: Annotated[
        str,
        typer.Option(
            help=with_limits("Register the result as a version of this model.", "RegisterModel", "model_name")
        ),
    ] = "",
    label: Annotated[
        str, typer.Option(help=with_limits("Label of the version, such as `staging`.", "RegisterModel", "label"))
    ] = "",
    run: RunOption = "",
    assignments: TrainSetOption = [],  # noqa: B006
    json: JsonOption = False,
) -> None:
    """Train a model from scratch, fine-tune one or continue a training, and optionally register it."""
    if sum(map(bool, (size, openai, checkpoint, continue_))) != 1:
        raise UsageError("choose one of --size, --openai, --checkpoint and --continue")
    if tokenizer and not openai:
        raise UsageError("--tokenizer: needs --openai; add --openai SIZE, or remove it")
    if label and not register:
        raise UsageError("--label: needs --register; add --register NAME, or remove it")
    chosen = None if recipe == "none" else recipe or ("auto" if size else None)
    options = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "recipe": chosen}
    config = {name: value for name, value in options.items() if value is not None}
    continued = {"continue_uri": continue_} if continue_ else {}
    fields = override({"config": config, **_size(size), **continued}, parse_overrides(assignments))
    requests: dict[str, Mapping[str, Any]] = {"TrainModel": fields}
    if openai:
        requests["ImportCheckpoint"] = {"openai_model": openai, "target_tokenizer_uri": tokenizer}
    if register:
        requests |= {"ExportModel": {}, "RegisterModel": {"model_name": register, "label": label}}
    stages = StageRun(run, "train", {"dataset": dataset, "checkpoint": checkpoint}, requests)
    stages.run()
    stages.show(json)


def _files(addresses: list[str]) -> dict[str, Any]:
    """Paths are made absolute; the service must see the same files."""
    return {"uris": [item if "://" in item else str(Path(item).absolute()) for item in addresses]}


def _mongodb(source: list[str]) -> dict[str, Any]:
    return {"source": {"database": source[0], "collections": source[1:]}}


def _size(size: str) -> dict[str, Any]:
    """Request fields for a new model's architecture; empty without a size. Raises UsageError."""
    if not size or "=" not in size:
        return {"model_size": size} if size else {}
    try:
        return {"model": {name.strip(): json_text.loads(value) for name, value in _assignments(size)}}
    except ValueError:
        raise UsageError(f"--size {size}: must be like 124M, or n_layer=4,n_head=4,n_embd=256,n_ctx=256") from None


def _assignments(text: str) -> list[tuple[str, str]]:
    parts = [part.partition("=") for part in text.split(",")]
    return [(name, value) for name, _, value in parts]
