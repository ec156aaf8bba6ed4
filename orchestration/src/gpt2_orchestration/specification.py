"""What a pipeline does: a YAML file with one section for each stage, which is that stage's request.

The sections have the names of the start calls, and their content is the request message in its JSON form, so that a
field is documented in one place: the protos. What comes from the stage before (artifact URIs, job ids) is left out.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.message import Message

from gpt2.exporter.v1 import exporter_service_pb2
from gpt2.registry.v1 import registry_service_pb2
from gpt2.tokenizer.v1 import tokenizer_service_pb2
from gpt2.trainer.v1 import trainer_service_pb2
from gpt2_orchestration.request_form import Request, RequestFormError, parse_request

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


class SpecificationError(Exception):
    """A specification is wrong; the message names the section and what to do."""


@dataclass(frozen=True, kw_only=True)
class PipelineSpecification:
    """One pipeline.

    Either `export_corpus` or `import_files` is set. With `import_checkpoint` the model is fine-tuned, else it is
    trained from scratch. The tokenizer is trained, or imported, or comes with the checkpoint.
    """

    name: str
    train_model: trainer_service_pb2.TrainModelRequest
    register_model: registry_service_pb2.RegisterModelRequest
    export_corpus: exporter_service_pb2.ExportCorpusRequest | None = None
    import_files: exporter_service_pb2.ImportFilesRequest | None = None
    train_tokenizer: tokenizer_service_pb2.TrainTokenizerRequest | None = None
    import_tokenizer: tokenizer_service_pb2.ImportTokenizerRequest | None = None
    import_checkpoint: trainer_service_pb2.ImportCheckpointRequest | None = None
    encode_corpus: tokenizer_service_pb2.EncodeCorpusRequest

    def __post_init__(self) -> None:
        if not self.name or not set(self.name) <= _NAME_CHARACTERS or len(self.name) > 50:
            raise SpecificationError("name: must be 1 to 50 lower-case letters, digits and '-'")
        if (self.export_corpus is None) == (self.import_files is None):
            raise SpecificationError("one of export_corpus and import_files is needed, and not both")
        if self.train_tokenizer is not None and self.import_tokenizer is not None:
            raise SpecificationError("train_tokenizer and import_tokenizer exclude each other")
        if self.import_checkpoint is None:
            if self.train_tokenizer is None and self.import_tokenizer is None:
                raise SpecificationError("train_tokenizer or import_tokenizer is needed to train from scratch")
            if self.train_model.WhichOneof("start") not in ("model", "model_size"):
                raise SpecificationError("train_model: `model` or `model_size` is needed to train from scratch")
        else:
            if self.train_tokenizer is not None:
                raise SpecificationError("train_tokenizer does not go with import_checkpoint: its weights know another")
            if self.train_model.WhichOneof("start") is not None:
                raise SpecificationError("train_model: the model comes from import_checkpoint; leave it out here")


def load_specification(path: Path, overrides: Mapping[str, Any] | None = None) -> PipelineSpecification:
    """Reads a specification from a YAML file.

    Args:
        path: The file.
        overrides: Values that replace the file's, by dotted path such as `train_model.config.steps`.

    Raises:
        SpecificationError: The file or an override is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecificationError(f"{path} cannot be read: {error}") from error
    try:
        return parse_specification(override(content, overrides or {}))
    except SpecificationError as error:
        raise SpecificationError(f"{path}: {error}") from error


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """Reads `PATH=VALUE` assignments, each value as YAML. Raises SpecificationError."""
    overrides = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path.strip():
            raise SpecificationError(f"{assignment!r} is no PATH=VALUE, such as train_model.config.steps=100")
        try:
            overrides[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SpecificationError(f"{path.strip()}: the value is no YAML: {error}") from error
    return overrides


def override(content: Any, overrides: Mapping[str, Any]) -> Any:
    """Replaces values in the content of a YAML file, which stays as it is.

    Args:
        content: The content.
        overrides: New values by dotted path; None removes what is there. Missing mappings on the way are made.

    Raises:
        SpecificationError: A path leads through something that is no mapping.
    """
    changed = copy.deepcopy(content)
    for path, value in overrides.items():
        *parents, last = path.split(".")
        place = changed
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise SpecificationError(f"{path} cannot be set: a part of it is no section")
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return changed


def parse_specification(content: Any) -> PipelineSpecification:
    """Builds a specification from the content of a YAML file. Raises SpecificationError."""
    if not isinstance(content, Mapping):
        raise SpecificationError("a mapping of sections is needed; the README has an example")
    sections: dict[str, type[Message]] = {
        "export_corpus": exporter_service_pb2.ExportCorpusRequest,
        "import_files": exporter_service_pb2.ImportFilesRequest,
        "train_tokenizer": tokenizer_service_pb2.TrainTokenizerRequest,
        "import_tokenizer": tokenizer_service_pb2.ImportTokenizerRequest,
        "import_checkpoint": trainer_service_pb2.ImportCheckpointRequest,
        "encode_corpus": tokenizer_service_pb2.EncodeCorpusRequest,
        "train_model": trainer_service_pb2.TrainModelRequest,
        "register_model": registry_service_pb2.RegisterModelRequest,
    }
    unknown = sorted(str(name) for name in set(content) - set(sections) - {"name"})
    if unknown:
        raise SpecificationError(f"unknown section {unknown[0]!r}; known are name, {', '.join(sections)}")
    for required in ("name", "train_model", "register_model"):
        if required not in content:
            raise SpecificationError(f"section {required!r} is missing")
    requests: dict[str, Any] = {
        name: _parse_section(name, content[name], kind) for name, kind in sections.items() if name in content
    }
    requests.setdefault("encode_corpus", tokenizer_service_pb2.EncodeCorpusRequest())
    return PipelineSpecification(name=str(content["name"]), **requests)


def _parse_section(name: str, section: Any, kind: type[Request]) -> Request:
    try:
        request = parse_request(name, section, kind)
    except RequestFormError as error:
        raise SpecificationError(str(error)) from error
    if request.HasField("job"):
        raise SpecificationError(f"{name}.job: job ids are given by the pipeline; leave it out")
    return request
