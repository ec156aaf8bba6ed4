"""The specification of a pipeline: a YAML file with a section for each stage, which holds that stage's request.

Sections have the names of the start calls, and their content is the request in its JSON form, so that fields are
documented once, in the protos. What comes from other stages (artifact URIs, job ids) is left out.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from gpt2.trainer.v1 import trainer_service_pb2
from gpt2_catalogue import Stage, catalogue
from gpt2_orchestration.client.field_errors import FieldError, format_field_errors, join_path, nearest_name
from gpt2_orchestration.errors import InputError
from gpt2_orchestration.pipelines.graph import (
    PipelineStage,
    connect_stages,
    order_stages,
    pipeline_inputs,
    required_inputs,
)
from gpt2_orchestration.pipelines.request_fields import read_request, section_name
from gpt2_orchestration.pipelines.strict_yaml import YamlError, read_yaml

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_MAX_NAME_LENGTH = 50


class SpecificationError(InputError):
    """A specification is invalid; the message has a line for each error.

    Args:
        errors: The errors; a string for one without a path.
        subject: Their source, such as a file.
    """

    def __init__(self, errors: Sequence[FieldError] | str, subject: str = "") -> None:
        self.errors = [FieldError("", errors)] if isinstance(errors, str) else list(errors)
        super().__init__(format_field_errors(self.errors, subject))


@cache
def sections() -> Mapping[str, Stage]:
    """The stages by the names of their sections, in the order of data flow."""
    stages = order_stages((stage, stage.request()) for stage in catalogue().stages.values())
    return {section_name(stage): stage for stage in stages}


@dataclass(frozen=True, kw_only=True)
class PipelineSpecification:
    """One pipeline."""

    name: str
    requests: Mapping[str, Any]
    """Request of each stage by its section, without what comes from other stages."""

    def stages(self, snapshot: str = "") -> tuple[PipelineStage, ...]:
        """The stages, each after those whose outputs it takes.

        Args:
            snapshot: Snapshot of the documents that `export_corpus` reads, unless its section names one.

        Raises:
            SpecificationError: A stage needs an artifact that no other makes.
        """
        requests = dict(self.requests)
        if snapshot and "export_corpus" in requests and not requests["export_corpus"].snapshot:
            requests["export_corpus"] = type(requests["export_corpus"])()
            requests["export_corpus"].CopyFrom(self.requests["export_corpus"])
            requests["export_corpus"].snapshot = snapshot
        stages = connect_stages((sections()[name], request) for name, request in requests.items())
        errors = [
            FieldError(
                section_name(stage.declaration), f"no stage of the pipeline makes its {item.kind}; add one that does"
            )
            for stage in stages
            for item in required_inputs(stage.declaration)
            if item.name not in stage.inputs
        ]
        if errors:
            raise SpecificationError(errors, self.name)
        return stages


def load_specification(path: Path, overrides: Mapping[str, Any] | None = None) -> PipelineSpecification:
    """Reads a specification from a YAML file. It is checked locally, without a service.

    Args:
        path: The file.
        overrides: Values that replace the file's, by dotted path such as `train_model.config.steps`.

    Raises:
        SpecificationError: The file or an override is invalid.
    """
    return parse_specification(read_content(path, overrides or {}), str(path))


def read_content(path: Path, overrides: Mapping[str, Any]) -> Any:
    """The content of a YAML file, with overrides applied. Raises SpecificationError."""
    try:
        return override(read_yaml(path.read_text(encoding="utf-8")), overrides)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecificationError(f"{path} cannot be read: {error}") from error
    except (SpecificationError, YamlError) as error:
        raise SpecificationError(error.errors, str(path)) from error


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """Parses `PATH=VALUE` assignments, with values in YAML; later ones win. Raises SpecificationError."""
    overrides: dict[str, Any] = {}
    errors: list[FieldError] = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        name = path.strip()
        if not equals or not name:
            example = "train_model.config.steps=100"
            errors.append(FieldError(f"--set {assignment!r}", f"must be PATH=VALUE, such as {example}"))
            continue
        try:
            overrides[name] = read_yaml(value)
        except YamlError as error:
            errors += [field_error.under(f"--set {name}") for field_error in error.errors]
    if errors:
        raise SpecificationError(errors)
    return overrides


def override(content: Any, overrides: Mapping[str, Any]) -> Any:
    """Applies overrides to a copy of a YAML file's content.

    Args:
        content: The content.
        overrides: Values by dotted path; None removes a key. Missing parents are created.

    Raises:
        SpecificationError: A parent on a path is not a mapping.
    """
    changed = copy.deepcopy(content)
    for path, value in overrides.items():
        *parents, last = path.split(".")
        place = changed
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise SpecificationError(
                [FieldError(path, "cannot be set, as a parent of it is not a mapping; set the parent")]
            )
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return changed


def parse_specification(content: Any, subject: str = "") -> PipelineSpecification:
    """Parses the content of a YAML file.

    Args:
        content: The content.
        subject: Its source, such as a file, for error messages.

    Raises:
        SpecificationError: The content is invalid; it has all errors.
    """
    if not isinstance(content, Mapping):
        raise SpecificationError([FieldError("", "must be a mapping of sections; see orchestration/examples")], subject)
    known = ("name", *sections())
    errors = [
        FieldError(join_path("", name), f"unknown section; {nearest_name(name, known)}")
        for name in content
        if name not in known
    ]
    errors += [
        FieldError(name, "this section is missing; add it")
        for name in ("name", "train_model", "register_model")
        if name not in content
    ]
    requests: dict[str, Any] = {}
    for name, stage in sections().items():
        if name in content:
            requests[name], wrong = _read_section(content[name], stage)
            errors += wrong
    if "name" in content:
        errors += _name_errors(content["name"])
    errors += _combination_errors(requests, {field_error.path for field_error in errors})
    if errors:
        raise SpecificationError(errors, subject)
    return PipelineSpecification(name=str(content["name"]), requests=_with_implied(requests))


def _read_section(section: Any, stage: Stage) -> tuple[Message, list[FieldError]]:
    """The request in a section, without fields that are wrong, and its errors."""
    inputs = pipeline_inputs(stage)
    request, errors = read_request(section, stage, [item.name for item in inputs])
    name = section_name(stage)
    if request.HasField("job"):
        errors.append(FieldError(f"{name}.job", "the pipeline sets job ids; remove it"))
    for item in inputs:
        if getattr(request, item.field):
            advice = f"set {item.only_if} in its place" if item.only_if else "remove it"
            errors.append(FieldError(f"{name}.{item.field}", f"comes from another stage of the pipeline; {advice}"))
    return request, errors


def _with_implied(requests: Mapping[str, Message]) -> Mapping[str, Message]:
    """Adds stages with empty requests where an artifact is needed that only one stage of the catalogue can make."""
    found = dict(requests)
    waiting = list(requests)
    while waiting:
        for item in required_inputs(sections()[waiting.pop()]):
            makers = [name for name, stage in sections().items() if _makes(stage, item.kind)]
            if len(makers) == 1 and makers[0] not in found:
                found[makers[0]] = sections()[makers[0]].request()
                waiting += makers
    return found


def _makes(stage: Stage, kind: str) -> bool:
    """Whether a stage makes artifacts of a kind, of other artifacts than those."""
    return any(item.kind == kind for item in stage.outputs) and all(
        item.kind != kind for item in required_inputs(stage)
    )


def _name_errors(name: Any) -> Iterator[FieldError]:
    text = str(name)
    if not text or not set(text) <= _NAME_CHARACTERS or len(text) > _MAX_NAME_LENGTH:
        yield FieldError("name", f"must be 1 to {_MAX_NAME_LENGTH} lower-case letters, digits and '-', not {text!r}")


def _combination_errors(sections: Mapping[str, Any], unread: Set[str]) -> Iterator[FieldError]:
    """Errors in the combination of sections.

    Args:
        sections: The request of each section, without invalid fields.
        unread: Paths of invalid fields.
    """
    if "export_corpus" not in sections and "import_files" not in sections:
        yield FieldError("export_corpus", "one of the sections export_corpus and import_files is needed; add one")
    for pair in (("export_corpus", "import_files"), ("train_tokenizer", "import_tokenizer")):
        if all(name in sections for name in pair):
            yield FieldError(pair[0], f"{' and '.join(pair)} exclude each other; remove one")
    has_tokenizer = "train_tokenizer" in sections or "import_tokenizer" in sections
    if "import_checkpoint" in sections:
        transplants = sections["import_checkpoint"].transplant
        is_read = unread.isdisjoint(("import_checkpoint", "import_checkpoint.transplant"))
        if "train_tokenizer" in sections and not transplants and is_read:
            yield FieldError(
                "train_tokenizer",
                "the tokenizer comes with import_checkpoint; remove this section, or set import_checkpoint.transplant, "
                "which fits the weights to the new tokenizer",
            )
        if transplants and not has_tokenizer:
            yield FieldError("import_checkpoint.transplant", "needs train_tokenizer or import_tokenizer; add one")
    elif not has_tokenizer:
        yield FieldError(
            "train_tokenizer", "a training from scratch needs train_tokenizer or import_tokenizer; add one"
        )
    starts = trainer_service_pb2.TrainModelRequest.DESCRIPTOR.oneofs_by_name["start"].fields
    unread_starts = unread & {"train_model", *(f"train_model.{field.name}" for field in starts)}
    if "train_model" in sections and not unread_starts:
        yield from _training_errors(sections["train_model"].WhichOneof("start"), "import_checkpoint" in sections)


def _training_errors(start: str | None, imported: bool) -> Iterator[FieldError]:
    if imported and start in ("model", "model_size", "continue_uri"):
        yield FieldError(f"train_model.{start}", "the model comes from import_checkpoint; remove it")
    elif not imported and start not in ("model", "model_size"):
        yield FieldError("train_model", "a training from scratch needs `model` or `model_size`; add one")
