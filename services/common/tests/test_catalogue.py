"""The catalogue of stages holds what the protos declare, and refuses declarations that cannot be."""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from gpt2.jobs.v1 import stage_pb2
from gpt2.trainer.v1 import trainer_service_pb2
from gpt2_catalogue import build_catalogue, catalogue


def declared(*stages, package="gpt2.odd.v1"):
    """The descriptor of a service whose calls `Start0`, `Start1`, ... declare stages."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    request = file.message_type.add(name="Request")
    request.field.add(name="some_uri", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
    request.field.add(name="size", number=2, type="TYPE_INT32", label="LABEL_OPTIONAL")
    service = file.service.add(name="OddService")
    for number, stage in enumerate(stages):
        method = service.method.add(
            name=f"Start{number}", input_type=f".{package}.Request", output_type=f".{package}.Request"
        )
        method.options.Extensions[stage_pb2.stage].CopyFrom(stage)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName(f"{package}.OddService")


def stage(*inputs, outputs=()):
    names = ("name", "field", "only_if")
    return stage_pb2.Stage(inputs=[dict(zip(names, item, strict=False)) for item in inputs], outputs=outputs)


def test_all_services_are_found_with_their_stages():
    assert set(catalogue().services) == {"exporter", "tokenizer", "trainer", "registry"}
    train = catalogue().stages["TrainModel"]
    assert (train.service, train.request) == ("trainer", trainer_service_pb2.TrainModelRequest)
    assert [(item.name, item.kind, item.field, item.required) for item in train.inputs] == [
        ("dataset", "dataset", "dataset_uri", True),
        ("checkpoint", "checkpoint", "checkpoint_uri", False),
        ("continued_checkpoint", "checkpoint", "continue_uri", False),
    ]
    assert train.output_names == ("checkpoint", "logs", "samples")
    assert "Generate" not in catalogue().stages


def test_every_input_is_of_a_kind_that_a_stage_makes():
    stages = catalogue().stages.values()
    made = {output.kind for stage in stages for output in stage.outputs}
    assert {item.kind for stage in stages for item in stage.inputs} <= made


def test_inputs_that_a_request_does_not_name_are_filled_from_earlier_stages():
    train = catalogue().stages["TrainModel"]
    uris = {"dataset": "file:///d", "checkpoint": "file:///c", "continued_checkpoint": "file:///o"}
    request = trainer_service_pb2.TrainModelRequest(model_size="124M")
    train.fill_inputs(request, uris)
    assert (request.dataset_uri, request.WhichOneof("start")) == ("file:///d", "model_size")
    request = trainer_service_pb2.TrainModelRequest()
    train.fill_inputs(request, uris)
    assert (request.WhichOneof("start"), request.checkpoint_uri) == ("checkpoint_uri", "file:///c")


def test_an_input_that_changes_a_stages_meaning_is_filled_only_where_the_request_asks():
    """A run that makes a tokenizer and imports weights means what it did before there were transplants."""
    importing, uris = catalogue().stages["ImportCheckpoint"], {"tokenizer": "file:///t"}
    request = trainer_service_pb2.ImportCheckpointRequest(openai_model="124M")
    importing.fill_inputs(request, uris)
    assert request == trainer_service_pb2.ImportCheckpointRequest(openai_model="124M")
    request.transplant = True
    importing.fill_inputs(request, uris)
    assert request.target_tokenizer_uri == "file:///t"
    request.target_tokenizer_uri = "file:///own"
    importing.fill_inputs(request, uris)
    assert request.target_tokenizer_uri == "file:///own"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (stage(("a", "some_url")), "input a: 'some_url' is no string of the request"),
        (stage(("a", "size")), "input a: 'size' is no string of the request"),
        (stage(("a", "some_uri", "flag")), "input a: 'flag' is no bool of the request"),
        (stage(("a", "some_uri", "size")), "input a: 'size' is no bool of the request"),
        (stage(("a", "some_uri"), ("a", "some_uri")), "two of a, a have the same name"),
        (stage(outputs=[{"name": "b"}, {"name": "b"}]), "two of b, b have the same name"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=rf"^gpt2\.odd\.v1\.OddService\.Start0: {message}"):
        build_catalogue([declared(wrong)])


def test_two_services_cannot_have_the_same_start_call():
    services = [declared(stage()), declared(stage(), package="gpt2.other.v1")]
    with pytest.raises(ValueError, match=r"gpt2\.other\.v1\.OddService\.Start0: odd has this start call"):
        build_catalogue(services)
