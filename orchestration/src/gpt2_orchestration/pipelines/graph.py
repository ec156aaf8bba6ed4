"""The stages of a pipeline and what each takes from which: the one place that turns a specification into a graph.

It knows nothing of TFX, so that an Airflow DAG file can be read in a moment and a graph be drawn without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.message import Message

from gpt2.exporter.v1 import exporter_service_pb2
from gpt2.trainer.v1 import trainer_service_pb2
from gpt2_orchestration import calls
from gpt2_orchestration.calls import StartCall
from gpt2_orchestration.specification import PipelineSpecification


@dataclass(frozen=True, slots=True)
class Source:
    """An output of a stage."""

    stage: str
    output: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: a start call, its request without what comes from other stages, and where that comes from."""

    name: str
    """Its name in the pipeline, which is that of its TFX component."""
    call: StartCall
    request: Message
    inputs: Mapping[str, Source] = field(default_factory=dict)


def pipeline_stages(specification: PipelineSpecification, snapshot: str = "") -> tuple[Stage, ...]:
    """Lists the stages, each after those that it takes from.

    Args:
        specification: What the pipeline does.
        snapshot: State of the data that is exported; empty: what is there when the stage runs.
    """
    corpus = _corpus(specification, snapshot)
    stages = [corpus]
    tokenizer = initial = None
    if specification.import_checkpoint is not None:
        imported = Stage(name="ImportCheckpoint", call=calls.IMPORT_CHECKPOINT, request=specification.import_checkpoint)
        stages.append(imported)
        initial = Source(imported.name, "checkpoint")
        tokenizer = Source(imported.name, "tokenizer")
    own = _tokenizer(specification, corpus)
    if own is not None:
        stages.append(own)
        tokenizer = Source(own.name, "tokenizer")
    assert tokenizer is not None, "the specification is valid, so there is a tokenizer"
    encode = Stage(
        name="EncodeCorpus",
        call=calls.ENCODE_CORPUS,
        request=specification.encode_corpus,
        inputs={"corpus": Source(corpus.name, "corpus"), "tokenizer": tokenizer},
    )
    train = _training(specification, encode, initial)
    export = Stage(
        name="ExportModel",
        call=calls.EXPORT_MODEL,
        request=trainer_service_pb2.ExportModelRequest(),
        inputs={"checkpoint": Source(train.name, "checkpoint")},
    )
    register = Stage(
        name="RegisterModel",
        call=calls.REGISTER_MODEL,
        request=specification.register_model,
        inputs={"model": Source(export.name, "model"), "logs": Source(train.name, "logs")},
    )
    return (*stages, encode, train, export, register)


def _corpus(specification: PipelineSpecification, snapshot: str) -> Stage:
    if specification.import_files is not None:
        return Stage(name="ImportFiles", call=calls.IMPORT_FILES, request=specification.import_files)
    request = exporter_service_pb2.ExportCorpusRequest()
    request.CopyFrom(specification.export_corpus or request)
    request.snapshot = request.snapshot or snapshot
    return Stage(name="ExportCorpus", call=calls.EXPORT_CORPUS, request=request)


def _tokenizer(specification: PipelineSpecification, corpus: Stage) -> Stage | None:
    if specification.train_tokenizer is not None:
        return Stage(
            name="TrainTokenizer",
            call=calls.TRAIN_TOKENIZER,
            request=specification.train_tokenizer,
            inputs={"corpus": Source(corpus.name, "corpus")},
        )
    if specification.import_tokenizer is not None:
        return Stage(name="ImportTokenizer", call=calls.IMPORT_TOKENIZER, request=specification.import_tokenizer)
    return None


def _training(specification: PipelineSpecification, encode: Stage, initial: Source | None) -> Stage:
    dataset = Source(encode.name, "dataset")
    if initial is None:
        return Stage(
            name="TrainModel",
            call=calls.TRAIN_MODEL,
            request=specification.train_model,
            inputs={"dataset": dataset},
        )
    return Stage(
        name="FineTuneModel",
        call=calls.FINE_TUNE_MODEL,
        request=specification.train_model,
        inputs={"dataset": dataset, "initial_checkpoint": initial},
    )
