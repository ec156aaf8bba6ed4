"""A stage, read from the descriptor of its start call."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import stage_pb2
from gpt2_rules import is_required


@dataclass(frozen=True, kw_only=True, slots=True)
class StageInput:
    """An artifact that a stage reads."""

    name: str
    """Unique in its stage, such as `corpus`."""
    kind: str
    field: str
    """Field of the request that has its URI, such as `corpus_uri`."""
    required: bool
    """Whether the field must be set. One of a oneof, of which only one can be, is not required."""
    only_from_request: bool
    """Whether the request alone can name it; otherwise an earlier stage's output of the same name fills the field."""
    only_if: str = ""
    """Field of type bool of the request without which no earlier stage's output fills the field; empty: none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOutput:
    """An artifact that a stage makes."""

    name: str
    """Unique in its stage, such as `checkpoint`."""
    kind: str
    optional: bool
    """Whether its job can succeed without making it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage of a pipeline: a call that starts a job."""

    name: str
    """Name of the start call, such as `TrainModel`."""
    service: str
    """Short name of the service that takes the call, such as `trainer`."""
    request: type[Message]
    response: type[Message]
    inputs: tuple[StageInput, ...]
    outputs: tuple[StageOutput, ...]

    @classmethod
    def of(cls, method: MethodDescriptor) -> "Stage":
        """Reads the stage that a start call declares.

        Raises:
            ValueError: An input's field is no string of the request, or its `only_if` no bool of it, or two inputs or
                outputs have one name.
        """
        declared = method.GetOptions().Extensions[stage_pb2.stage]
        fields = method.input_type.fields_by_name
        for names in ([item.name for item in declared.inputs], [item.name for item in declared.outputs]):
            if len(set(names)) < len(names):
                raise ValueError(f"{method.full_name}: two of {', '.join(names)} have the same name; rename one")
        for item in declared.inputs:
            if item.field not in fields or fields[item.field].cpp_type != FieldDescriptor.CPPTYPE_STRING:
                raise ValueError(f"{method.full_name}: input {item.name}: {item.field!r} is no string of the request")
            if item.only_if and (
                item.only_if not in fields or fields[item.only_if].cpp_type != FieldDescriptor.CPPTYPE_BOOL
            ):
                raise ValueError(f"{method.full_name}: input {item.name}: {item.only_if!r} is no bool of the request")
        return cls(
            name=method.name,
            service=service_name(method.containing_service.full_name),
            request=GetMessageClass(method.input_type),
            response=GetMessageClass(method.output_type),
            inputs=tuple(
                StageInput(
                    name=item.name,
                    kind=item.kind or item.name,
                    field=item.field,
                    required=is_required(fields[item.field]),
                    only_from_request=item.only_from_request,
                    only_if=item.only_if,
                )
                for item in declared.inputs
            ),
            outputs=tuple(
                StageOutput(name=item.name, kind=item.kind or item.name, optional=item.optional)
                for item in declared.outputs
            ),
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the artifacts that its job makes, or can make."""
        return tuple(output.name for output in self.outputs)

    def input_artifacts(self, request: Message) -> list[artifact_pb2.Artifact]:
        """The artifacts that a request names, by name, kind and URI."""
        return [
            artifact_pb2.Artifact(name=item.name, kind=item.kind, uri=uri)
            for item in self.inputs
            if (uri := getattr(request, item.field))
        ]

    def find_input(self, field: str) -> StageInput | None:
        """The input whose URI a field of the request has; None where the field has none."""
        return next((item for item in self.inputs if item.field == field), None)

    def inputs_from_stages(self, request: Message) -> list[StageInput]:
        """The inputs that earlier stages of its run can give to a request."""
        return [
            item
            for item in self.inputs
            if not item.only_from_request and (not item.only_if or getattr(request, item.only_if))
        ]

    def fill_inputs(self, request: Message, uris: Mapping[str, str]) -> None:
        """Sets the URIs of inputs that the request does not name and earlier stages of its run have made.

        Args:
            request: The request; changed in place.
            uris: URIs of the artifacts that there are, by name.
        """
        for item in self.inputs_from_stages(request):
            if item.name not in uris:
                continue
            oneof = request.DESCRIPTOR.fields_by_name[item.field].containing_oneof
            if not (request.WhichOneof(oneof.name) if oneof else getattr(request, item.field)):
                setattr(request, item.field, uris[item.name])


def default_stage_name(start: str) -> str:
    """The name of a stage whose plan gives it none: `train-model` for the start call `TrainModel`."""
    return re.sub(r"(?<=.)([A-Z])", r"-\1", start).lower()


def service_name(full_name: str) -> str:
    """Short name of a service, which is that of its package: `trainer` of `gpt2.trainer.v1.TrainerService`."""
    return full_name.split(".")[1]
