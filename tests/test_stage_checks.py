"""What each service says of a stage's request, whatever that holds, before it starts anything."""

import typing

import pytest
from google.protobuf.descriptor import FieldDescriptor

from gpt2.jobs.v1 import jobs_service_pb2
from gpt2_catalogue import catalogue
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.jobs.checks import RequestChecks
from gpt2_common.peers import Peers
from gpt2_exporter.service import SERVICE as EXPORTER
from gpt2_registry.service import REGISTRY
from gpt2_rules import is_required
from gpt2_rules.reading import is_map
from gpt2_tokenizer.service import SERVICE as TOKENIZER
from gpt2_trainer.service import TRAINER

_SERVICES = {service.name: service for service in (EXPORTER, TOKENIZER, TRAINER, REGISTRY)}
_KINDS = {
    FieldDescriptor.CPPTYPE_INT32: "integer",
    FieldDescriptor.CPPTYPE_INT64: "integer",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_BOOL: "truth",
}
_HOSTILE = {
    "least": {"integer": -(2**31), "number": -1e308, "text": "\x00\n", "truth": True},
    "greatest": {"integer": 2**31 - 1, "number": 1e308, "text": "../" * 30_000, "truth": True},
    "long": {"integer": 1, "number": 1.0, "text": "file:///" + "a" * 90_000, "truth": False},
    "zero": {"integer": 0, "number": 0.0, "text": "", "truth": False},
    "nothing that is a number": {"integer": 1, "number": float("nan"), "text": "hf://{", "truth": True},
    "other types": {"integer": "x", "number": [], "text": {"a": 1}, "truth": "maybe"},
}


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    made = {}
    for name, service in _SERVICES.items():
        settings = service.settings(artifact_root=str(folder), database_url="sqlite://")
        artifacts = ArtifactStore(settings.artifact_root, settings.roots, folder / "scratch")
        stages = [kind.stage for kind in service.kinds]
        made[name] = RequestChecks(stages, service.checks(settings, artifacts), Peers(settings), artifacts)
    return made


def check(checks, call, form):
    stage = jobs_service_pb2.ValidateStageRequest(start=call.name)
    stage.request.update(form)
    return checks[call.service].check_stage(stage)


def fill(message, values, choice):
    """A form with a value in each field; of a oneof, in the one that `choice` counts off."""
    form = {}
    for field in message.fields:
        oneof = field.containing_oneof
        others = oneof.fields if oneof else [field]
        if field.name == "job" or field.name != others[choice % len(others)].name:
            continue
        if is_map(field):
            form[field.name] = {"k\n": values["text"], "": values["text"]}
            continue
        if field.message_type is not None:
            value = fill(field.message_type, values, choice)
        elif field.enum_type is not None:
            value = field.enum_type.values[-1].name
        else:
            value = values[_KINDS[field.cpp_type]]
        form[field.name] = [value, value] if field.is_repeated else value
    return form


@pytest.mark.parametrize("call", catalogue().stages.values(), ids=lambda call: call.name)
def test_an_empty_request_lacks_what_is_required(checks, call):
    message = call.request.DESCRIPTOR
    required = {item.name for item in (*message.fields, *message.oneofs) if is_required(item)}
    assert required
    assert required <= {path for path, _ in check(checks, call, {})}


@pytest.mark.parametrize("call", catalogue().stages.values(), ids=lambda call: call.name)
def test_inputs_outside_the_roots_are_refused(checks, call):
    for item in call.inputs:
        refused = dict(check(checks, call, {item.field: "file:///etc"}))
        assert "GPT2_ALLOWED_ROOTS" in refused[item.field]


@pytest.mark.parametrize("service", _SERVICES.values(), ids=_SERVICES)
def test_a_service_answers_all_of_its_calls(service):
    stages = {stage.name for stage in catalogue().stages.values() if stage.service == service.name}
    assert set(service.work) == stages
    # A servicer is a class, or made by a function that says which.
    made = typing.get_type_hints(service.servicer).get("return", service.servicer)
    calls = {method.name for method in service.grpc_service.methods} - stages
    assert not {name for name in calls if not hasattr(made, name)}


@pytest.mark.parametrize("values", _HOSTILE.values(), ids=_HOSTILE)
@pytest.mark.parametrize("call", catalogue().stages.values(), ids=lambda call: call.name)
def test_hostile_requests_are_answered_with_short_texts_at_known_fields(checks, call, values):
    message = call.request.DESCRIPTOR
    known = {item.name for item in (*message.fields, *message.oneofs)}
    for choice in range(max((len(oneof.fields) for oneof in message.oneofs), default=1)):
        found = check(checks, call, fill(message, values, choice))
        assert found
        for path, description in found:
            assert not path or path.replace("[", ".").partition(".")[0] in known
            assert description
            assert len(description) < 600
