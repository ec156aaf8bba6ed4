"""Requests as people write them: read, checked by the rules in the protos, and sent to a service as written.

What only a service knows (allowed folders, its labels) it checks itself: see `pipelines/validation.py`.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from gpt2_catalogue import Stage, catalogue, default_stage_name
from gpt2_orchestration.client.field_errors import FieldError
from gpt2_rules import describe
from gpt2_rules.forms import read_form, violations_besides

_LATER_URI = "file:///later"
"""Placeholder for an artifact that an earlier stage makes."""
_EXACT_INTEGERS = 2**53
"""Largest integer that a Struct, whose numbers are doubles, holds exactly; larger ones are strings in JSON."""


def section_name(stage: Stage) -> str:
    """Name of a stage's section in a specification: `train_model` for TrainModel."""
    return default_stage_name(stage.name).replace("-", "_")


def find_field(stage: Stage, path: str) -> FieldDescriptor:
    """A field of a stage's request by its path, such as `config.steps`. Raises KeyError."""
    *parents, name = path.split(".")
    message = cast(Descriptor, stage.request.DESCRIPTOR)
    for parent in parents:
        message = message.fields_by_name[parent].message_type
    field: FieldDescriptor = message.fields_by_name[name]
    return field


def with_limits(text: str, start: str, path: str) -> str:
    """Help of an option, with the limits of the field of a start call's request that it sets."""
    limits = describe(find_field(catalogue().stages[start], path))
    return f"{text} It must be {limits}." if limits else text


def read_request(content: Any, stage: Stage, inputs: Collection[str]) -> tuple[Message, list[FieldError]]:
    """Reads the request of a stage, and checks it by the rules in the protos.

    Args:
        content: Fields by name, as YAML or JSON has them; None for none.
        stage: The stage.
        inputs: Names of the inputs that earlier stages give, which the content leaves out.

    Returns:
        The request, without fields that are wrong, and all errors, with paths that begin with the stage's section.
    """
    request, unread = read_form({} if content is None else content, stage.request)
    complete = stage.request()
    complete.CopyFrom(request)
    stage.fill_inputs(complete, dict.fromkeys(inputs, _LATER_URI))
    found = [*unread, *violations_besides(complete, unread)]
    return request, [FieldError(path, problem).under(section_name(stage)) for path, problem in found]


def form_struct(fields: Mapping[str, Any]) -> Struct:
    """Fields by name as a Struct; YAML values without a JSON form become protobuf's strings for them."""
    struct = Struct()
    struct.update(_as_json(fields))
    return struct


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) <= _EXACT_INTEGERS):
        return value
    # Larger integers; dates, which YAML parses from text.
    return str(value)
