"""`gpt2 export`, `tokenize` and `train`: stages by hand, each followed to its end.

What has no option of its own is set by its path in the request, as the protos have it: `--set config.clip_norm=0.5`.
"""

import json as json_text
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration import calls
from gpt2_orchestration.calls import StartCall
from gpt2_orchestration.client import connect
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.output import JsonOption, as_json, print_json
from gpt2_orchestration.pipelines.requests import run_job
from gpt2_orchestration.request_form import RequestFormError, parse_request
from gpt2_orchestration.specification import override, parse_overrides

RunOption = Annotated[
    str, typer.Option(help="Id of the run that the jobs belong to; the same again finds them. Default: a new one.")
]
ExportSetOption = Annotated[
    list[str], typer.Option("--set", help="PATH=VALUE of the request, such as max_rejected_share=0.01. Repeatable.")
]
EncodeSetOption = Annotated[
    list[str],
    typer.Option("--set", help="PATH=VALUE of EncodeCorpus's request, such as engine=ENGINE_BEAM. Repeatable."),
]
TrainSetOption = Annotated[
    list[str],
    typer.Option("--set", help="PATH=VALUE of TrainModel's request, such as config.clip_norm=0.5. Repeatable."),
]


class StagesByHand:
    """Stages that follow each other: what one has made goes into those after it.

    Args:
        run_id: The run that their jobs belong to; empty for a new one.
        prefix: What a new run's id begins with.
    """

    def __init__(self, run_id: str, prefix: str) -> None:
        self._run_id = run_id or f"{prefix}-{secrets.token_hex(4)}"
        self._settings = client_settings()
        self._jobs: list[job_pb2.Job] = []
        self.inputs: dict[str, str] = {}
        """URIs by name of what further stages take."""

    def run(self, call: StartCall, fields: Mapping[str, Any]) -> job_pb2.Job:
        """Starts a job and follows it to its end. Ctrl-C cancels it. Raises ServiceError and UsageError."""
        try:
            request = parse_request(call.name, fields, call.request)
        except RequestFormError as error:
            raise UsageError(str(error)) from error
        for name, field in call.inputs.items():
            if name in self.inputs and not getattr(request, field):
                setattr(request, field, self.inputs[name])
        options = job_pb2.JobOptions(job_id=f"{self._run_id}/{call.name}", run_id=self._run_id, retry_failed=True)
        request.job.CopyFrom(options)  # type: ignore[attr-defined]
        with connect(call.service, self._settings) as client:
            job = run_job(client, call, request)
        self._jobs.append(job)
        self.inputs |= {output.name: output.uri for output in job.outputs}
        return job

    def show(self, json: bool) -> None:
        """Prints what was made: a line for each artifact, its name and its URI."""
        outputs = {output.name: output.uri for job in self._jobs for output in job.outputs}
        if json:
            print_json({"outputs": outputs, "jobs": [as_json(job) for job in self._jobs]})
            return
        for name, uri in outputs.items():
            print(f"{name}\t{uri}")


@shows_errors
def export(
    source: Annotated[list[str] | None, typer.Argument(help="DATABASE and COLLECTIONs of MongoDB.")] = None,
    field: Annotated[str, typer.Option(help="Path or column of the text in a document. Default: text.")] = "",
    filter: Annotated[str, typer.Option(help="Which documents, in MongoDB Extended JSON.")] = "",
    files: Annotated[list[str] | None, typer.Option(help="File, folder, glob or URI instead. Repeatable.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the files, such as cp1252. Default: utf-8.")] = "",
    csv_delimiter: Annotated[
        str, typer.Option(help=r"What separates the columns of the files, such as ';'; '\t' is a tab.")
    ] = "",
    csv_header: Annotated[
        bool, typer.Option(help="Whether the first row of .csv names the columns; else --field is a number, from 1.")
    ] = True,
    document_separator: Annotated[
        str, typer.Option(help="What stands between the documents of a .txt file, such as '<|endoftext|>'.")
    ] = "",
    documents_field: Annotated[
        str, typer.Option(help="Path of the list of documents in the object of a .json file.")
    ] = "",
    list_separator: Annotated[
        str | None, typer.Option(help="What joins the texts where --field leads to a list, in MongoDB too.")
    ] = None,
    max_rejected: Annotated[int, typer.Option(min=-1, help="Most documents that cannot be used; -1: any.")] = 0,
    run: RunOption = "",
    assignments: ExportSetOption = [],  # noqa: B006 - typer's way to say that there may be none
    json: JsonOption = False,
) -> None:
    """Export text from MongoDB or from files to a corpus."""
    if bool(source) == bool(files) or len(source or files or ()) < (2 if source else 1):
        raise UsageError("name a DATABASE and at least one COLLECTION, or --files")
    call, fields = (calls.IMPORT_FILES, _files(files)) if files else (calls.EXPORT_CORPUS, _mongodb(source or []))
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
        raise UsageError(f"--{next(iter(of_files)).replace('_', '-')} is for --files: name files, or leave it out")
    place |= {**of_files, **{name: value for name, value in (("text_field", field), ("filter", filter)) if value}}
    if list_separator is not None:
        place["list_separator"] = list_separator
    stages = StagesByHand(run, "export")
    stages.run(call, override({**fields, "max_rejected": max_rejected}, parse_overrides(assignments)))
    stages.show(json)


@shows_errors
def tokenize(
    corpus: Annotated[str, typer.Argument(help="URI of a corpus.")],
    vocabulary_size: Annotated[int | None, typer.Option(help="Train a tokenizer with so many tokens.")] = None,
    tokenizer: Annotated[str, typer.Option(help="URI of a tokenizer that was trained or imported before.")] = "",
    imported: Annotated[
        str,
        typer.Option("--import", help="`openai-gpt2`, or address of a tokenizer in Hugging Face's or OpenAI's form."),
    ] = "",
    validation_fraction: Annotated[float | None, typer.Option(help="Share of the documents to validate with.")] = None,
    run: RunOption = "",
    assignments: EncodeSetOption = [],  # noqa: B006
    json: JsonOption = False,
) -> None:
    """Encode a corpus to a dataset, with a tokenizer of its own, an earlier one or OpenAI's."""
    if sum(map(bool, (vocabulary_size, tokenizer, imported))) != 1:
        raise UsageError("choose one of --vocabulary-size, --tokenizer and --import")
    given = {} if validation_fraction is None else {"validation_fraction": validation_fraction}
    fields = override(given, parse_overrides(assignments))
    stages = StagesByHand(run, "tokenize")
    stages.inputs["corpus"] = corpus
    if tokenizer:
        stages.inputs["tokenizer"] = tokenizer
    elif imported:
        stages.run(calls.IMPORT_TOKENIZER, {"uri": imported})
    else:
        stages.run(calls.TRAIN_TOKENIZER, {"vocabulary_size": vocabulary_size})
    stages.run(calls.ENCODE_CORPUS, fields)
    stages.show(json)


@shows_errors
def train(
    dataset: Annotated[str, typer.Argument(help="URI of a dataset.")],
    size: Annotated[
        str, typer.Option(help="From scratch: one of OpenAI's sizes, or n_layer=4,n_head=4,n_embd=256.")
    ] = "",
    openai: Annotated[str, typer.Option(help="Fine-tune OpenAI's weights of this size, such as 124M.")] = "",
    checkpoint: Annotated[str, typer.Option(help="Fine-tune a checkpoint: its URI.")] = "",
    continue_: Annotated[
        str, typer.Option("--continue", help="Continue the training of a checkpoint, with its optimizer: its URI.")
    ] = "",
    steps: Annotated[int | None, typer.Option(help="Updates to make; with --continue, in addition.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences an update.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Greatest learning rate.")] = None,
    register: Annotated[str, typer.Option(help="Register the result as a version of this model.")] = "",
    label: Annotated[str, typer.Option(help="Label of the version, such as `staging`.")] = "",
    run: RunOption = "",
    assignments: TrainSetOption = [],  # noqa: B006
    json: JsonOption = False,
) -> None:
    """Train a model from scratch, fine-tune one or continue a training, and register it if wanted."""
    if sum(map(bool, (size, openai, checkpoint, continue_))) != 1:
        raise UsageError("choose one of --size, --openai, --checkpoint and --continue")
    if label and not register:
        raise UsageError("--label needs --register NAME")
    options = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    config = {name: value for name, value in options.items() if value is not None}
    continued = {"continue_uri": continue_} if continue_ else {}
    fields = override({"config": config, **_size(size), **continued}, parse_overrides(assignments))
    stages = StagesByHand(run, "train")
    stages.inputs["dataset"] = dataset
    if checkpoint:
        stages.inputs["initial_checkpoint"] = checkpoint
    elif openai:
        stages.run(calls.IMPORT_CHECKPOINT, {"openai_model": openai})
        stages.inputs["initial_checkpoint"] = stages.inputs.pop("checkpoint")
    stages.run(calls.TRAIN_MODEL if size or continue_ else calls.FINE_TUNE_MODEL, fields)
    if register:
        stages.run(calls.EXPORT_MODEL, {})
        stages.run(calls.REGISTER_MODEL, {"model_name": register, "label": label})
    stages.show(json)


def _files(addresses: list[str]) -> dict[str, Any]:
    """Paths are those of this machine; the service must be able to read them there."""
    return {"uris": [item if "://" in item else str(Path(item).absolute()) for item in addresses]}


def _mongodb(source: list[str]) -> dict[str, Any]:
    return {"source": {"database": source[0], "collections": source[1:]}}


def _size(size: str) -> dict[str, Any]:
    """The architecture of a new model, in the request's form; empty where none is new. Raises UsageError."""
    if not size or "=" not in size:
        return {"model_size": size} if size else {}
    try:
        return {"model": {name.strip(): json_text.loads(value) for name, value in _assignments(size)}}
    except ValueError:
        raise UsageError(f"--size {size}: must be like 124M, or n_layer=4,n_head=4,n_embd=256,n_ctx=256") from None


def _assignments(text: str) -> list[tuple[str, str]]:
    parts = [part.partition("=") for part in text.split(",")]
    return [(name, value) for name, _, value in parts]
