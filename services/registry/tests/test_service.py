"""The registry as its callers see it: over gRPC, in a process of its own, with a real MLflow server."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from free_ports import free_port

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.database import open_database
from gpt2_common.events.outbox import waiting_events


@pytest.fixture
def registry(start_registry, mlflow_uri):
    return start_registry(mlflow_uri)


def refused(call, code):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == code
    return caught.value.details()


def label_events(registry):
    with open_database(f"sqlite:///{registry.database}") as engine:
        events = [waiting.event for waiting in waiting_events(engine, "/gpt2/registry", 1000)]
    kind = events_pb2.ModelLabelChanged
    return [kind.FromString(event.data) for event in events if event.type == kind.DESCRIPTOR.full_name]


def test_life_of_a_model(registry, artifacts):
    model = artifacts.model()
    fields = {"model_uri": model, "model_name": "life", "label": "staging", "reason": "first"}
    job = registry.register(job=job_pb2.JobOptions(job_id="run/register"), **fields)
    assert job.state == job_pb2.Job.STATE_SUCCEEDED, job.error
    again = registry.register(job=job_pb2.JobOptions(job_id="run/register"), **fields)
    assert again.outputs == job.outputs
    for _ in range(2):
        assert registry.register(model_uri=model, model_name="life").state == job_pb2.Job.STATE_SUCCEEDED

    stub = registry.stub
    first = stub.GetModelVersion(pb.GetModelVersionRequest(model_name="life", label="staging")).model_version
    assert (first.version, first.labels, first.model_uri) == (1, ["staging"], "models:/life/1")
    assert first.metrics["validation_loss"] == 3.25
    assert abs(first.create_time.seconds - time.time()) < 300
    assert json.loads(first.tags["gpt2.label.staging"])["reason"] == "first"
    assert json.loads(first.tags["gpt2.label.staging"])["actor"] == "job run/register"
    assert first.tags["readiness"] == "staging"

    moved = stub.SetLabel(
        pb.SetLabelRequest(model_name="life", version=3, label="staging", actor="ann", reason="better — Grüße")
    )
    assert (moved.previous_version, moved.model_version.version, moved.model_version.labels) == (1, 3, ["staging"])
    who = json.loads(moved.model_version.tags["gpt2.label.staging"])
    assert (who["actor"], who["reason"]) == ("ann", "better — Grüße")
    former = stub.GetModelVersion(pb.GetModelVersionRequest(model_name="life", version=1)).model_version
    assert former.labels == []
    assert "gpt2.label.staging" not in former.tags
    assert former.tags["readiness"] == "draft"

    cleared = stub.ClearLabel(pb.ClearLabelRequest(model_name="life", label="staging", actor="bob"))
    assert cleared.previous_version == 3
    details = refused(
        lambda: stub.ClearLabel(pb.ClearLabelRequest(model_name="life", label="staging", actor="bob")),
        grpc.StatusCode.NOT_FOUND,
    )
    assert "no version of model 'life' holds the label 'staging'" in details
    moves = [(event.previous_version, event.version, event.actor) for event in label_events(registry)]
    assert moves == [(0, 1, "job run/register"), (1, 3, "ann"), (3, 0, "bob")]

    page = stub.ListModelVersions(pb.ListModelVersionsRequest(model_name="life", page_size=2))
    assert [item.version for item in page.model_versions] == [3, 2]
    assert page.model_versions[0].metrics["validation_loss"] == 3.25
    rest = stub.ListModelVersions(
        pb.ListModelVersionsRequest(model_name="life", page_size=2, page_token=page.next_page_token)
    )
    assert [item.version for item in rest.model_versions] == [1]
    assert rest.next_page_token == ""
    refused(
        lambda: stub.ListModelVersions(pb.ListModelVersionsRequest(model_name="life", page_token="nonsense")),
        grpc.StatusCode.INVALID_ARGUMENT,
    )

    missing = pb.SetLabelRequest(model_name="life", version=9, label="staging", actor="ann")
    assert "no version 9" in refused(lambda: stub.SetLabel(missing), grpc.StatusCode.NOT_FOUND)
    assert len(label_events(registry)) == 3


def test_racing_labels_have_one_holder_and_a_whole_history(registry, artifacts):
    model = artifacts.model()
    for _ in range(2):
        registry.register(model_uri=model, model_name="race")

    def set_label(version):
        request = pb.SetLabelRequest(model_name="race", version=version, label="production", actor=f"actor {version}")
        return registry.stub.SetLabel(request).previous_version

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(set_label, [1, 2, 1, 2, 1, 2]))
    holder = 0
    for event in label_events(registry):
        assert event.previous_version == holder
        holder = event.version
    changes = registry.stub.ListLabelChanges(pb.ListLabelChangesRequest(model_name="race")).changes
    assert sorted(change.actor for change in changes) == 3 * ["actor 1"] + 3 * ["actor 2"]
    versions = registry.stub.ListModelVersions(pb.ListModelVersionsRequest(model_name="race")).model_versions
    assert [item.version for item in versions if "production" in item.labels] == [holder]
    assert [item.version for item in versions if "gpt2.label.production" in item.tags] == [holder]
    assert {item.version: item.tags["readiness"] for item in versions} == {holder: "production", 3 - holder: "draft"}


def test_longest_label(registry, artifacts):
    registry.register(model_uri=artifacts.model(), model_name="long name. with everything_-1")
    request = pb.SetLabelRequest(
        model_name="long name. with everything_-1", version=1, label="x" * 255, actor="a", reason="ä" * 1000
    )
    assert registry.stub.SetLabel(request).model_version.labels == ["x" * 255]


def test_unknown_models_and_bad_requests(registry):
    stub = registry.stub
    for call in (
        lambda: stub.GetModelVersion(pb.GetModelVersionRequest(model_name="none", version=1)),
        lambda: stub.GetModelVersion(pb.GetModelVersionRequest(model_name="none", label="staging")),
        lambda: stub.ListModelVersions(pb.ListModelVersionsRequest(model_name="none")),
        lambda: stub.SetLabel(pb.SetLabelRequest(model_name="none", version=1, label="a", actor="b")),
    ):
        assert "there is no model 'none'" in refused(call, grpc.StatusCode.NOT_FOUND)
    for call in (
        lambda: stub.RegisterModel(pb.RegisterModelRequest(model_uri="file:///etc", model_name="m")),
        lambda: stub.GetModelVersion(pb.GetModelVersionRequest(model_name="m")),
        lambda: stub.ListModelVersions(pb.ListModelVersionsRequest(model_name="m", page_size=1001)),
        lambda: stub.SetLabel(pb.SetLabelRequest(model_name="m", version=1, label="v1", actor="b")),
        lambda: stub.ClearLabel(pb.ClearLabelRequest(model_name="m", label="latest", actor="b")),
    ):
        refused(call, grpc.StatusCode.INVALID_ARGUMENT)


def test_mlflow_that_is_down_or_silent(start_registry, artifacts):
    down = start_registry(f"http://127.0.0.1:{free_port()}")
    request = pb.GetModelVersionRequest(model_name="m", version=1)
    details = refused(lambda: down.stub.GetModelVersion(request), grpc.StatusCode.UNAVAILABLE)
    assert "GPT2_MLFLOW_TRACKING_URI" in details
    started = time.monotonic()
    refused(lambda: down.stub.GetModelVersion(request), grpc.StatusCode.UNAVAILABLE)
    assert time.monotonic() - started < 10
    job = down.register(model_uri=artifacts.model(), model_name="m")
    assert job.state == job_pb2.Job.STATE_FAILED
    assert job.error.code == grpc.StatusCode.UNAVAILABLE.value[0]


def test_server_that_is_not_mlflow(start_registry):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        registry = start_registry(f"http://127.0.0.1:{other.getsockname()[1]}")
        request = pb.GetModelVersionRequest(model_name="m", version=1)
        refused(lambda: registry.stub.GetModelVersion(request, timeout=90), grpc.StatusCode.UNAVAILABLE)
