"""The start calls of the services: which service takes each, with which request, and how artifacts come in and go out.

This table is all that orchestration knows of what the stages do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from gpt2.exporter.v1 import exporter_service_pb2, exporter_service_pb2_grpc
from gpt2.registry.v1 import registry_service_pb2, registry_service_pb2_grpc
from gpt2.tokenizer.v1 import tokenizer_service_pb2, tokenizer_service_pb2_grpc
from gpt2.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc

DEFAULT_PORTS: Mapping[str, int] = {"exporter": 50051, "tokenizer": 50052, "trainer": 50053, "registry": 50054}
"""The services, and the ports that they serve on by default."""

STUBS: Mapping[str, Any] = {
    "exporter": exporter_service_pb2_grpc.ExporterServiceStub,
    "tokenizer": tokenizer_service_pb2_grpc.TokenizerServiceStub,
    "trainer": trainer_service_pb2_grpc.TrainerServiceStub,
    "registry": registry_service_pb2_grpc.RegistryServiceStub,
}
"""The client of each service's own interface."""


@dataclass(frozen=True, kw_only=True)
class StartCall:
    """One start call."""

    name: str
    service: str
    request: type[Message]
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Which field of the request takes the URI of which input."""
    outputs: tuple[str, ...]
    """Names of the job's outputs."""


EXPORT_CORPUS = StartCall(
    name="ExportCorpus", service="exporter", request=exporter_service_pb2.ExportCorpusRequest, outputs=("corpus",)
)
IMPORT_FILES = StartCall(
    name="ImportFiles", service="exporter", request=exporter_service_pb2.ImportFilesRequest, outputs=("corpus",)
)
TRAIN_TOKENIZER = StartCall(
    name="TrainTokenizer",
    service="tokenizer",
    request=tokenizer_service_pb2.TrainTokenizerRequest,
    inputs={"corpus": "corpus_uri"},
    outputs=("tokenizer",),
)
IMPORT_TOKENIZER = StartCall(
    name="ImportTokenizer",
    service="tokenizer",
    request=tokenizer_service_pb2.ImportTokenizerRequest,
    outputs=("tokenizer",),
)
ENCODE_CORPUS = StartCall(
    name="EncodeCorpus",
    service="tokenizer",
    request=tokenizer_service_pb2.EncodeCorpusRequest,
    inputs={"corpus": "corpus_uri", "tokenizer": "tokenizer_uri"},
    outputs=("dataset",),
)
IMPORT_CHECKPOINT = StartCall(
    name="ImportCheckpoint",
    service="trainer",
    request=trainer_service_pb2.ImportCheckpointRequest,
    outputs=("checkpoint", "tokenizer"),
)
TRAIN_MODEL = StartCall(
    name="TrainModel",
    service="trainer",
    request=trainer_service_pb2.TrainModelRequest,
    inputs={"dataset": "dataset_uri"},
    outputs=("checkpoint", "logs", "samples"),
)
FINE_TUNE_MODEL = StartCall(
    name="TrainModel",
    service="trainer",
    request=trainer_service_pb2.TrainModelRequest,
    inputs={"dataset": "dataset_uri", "initial_checkpoint": "checkpoint_uri"},
    outputs=("checkpoint", "logs", "samples"),
)
EXPORT_MODEL = StartCall(
    name="ExportModel",
    service="trainer",
    request=trainer_service_pb2.ExportModelRequest,
    inputs={"checkpoint": "checkpoint_uri"},
    outputs=("model",),
)
EVALUATE_MODEL = StartCall(
    name="EvaluateModel",
    service="trainer",
    request=trainer_service_pb2.EvaluateModelRequest,
    inputs={"model": "model_uri", "dataset": "dataset_uri"},
    outputs=("evaluation",),
)
REGISTER_MODEL = StartCall(
    name="RegisterModel",
    service="registry",
    request=registry_service_pb2.RegisterModelRequest,
    inputs={"model": "model_uri", "logs": "logs_uri"},
    outputs=("version",),
)

START_CALLS: Mapping[str, StartCall] = {
    "ExportCorpus": EXPORT_CORPUS,
    "ImportFiles": IMPORT_FILES,
    "TrainTokenizer": TRAIN_TOKENIZER,
    "ImportTokenizer": IMPORT_TOKENIZER,
    "EncodeCorpus": ENCODE_CORPUS,
    "ImportCheckpoint": IMPORT_CHECKPOINT,
    "TrainModel": TRAIN_MODEL,
    "FineTuneModel": FINE_TUNE_MODEL,
    "ExportModel": EXPORT_MODEL,
    "RegisterModel": REGISTER_MODEL,
}
"""The start calls by the name of the stage that makes them."""
