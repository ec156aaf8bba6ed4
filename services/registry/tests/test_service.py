"""The registry as its callers see it: over gRPC, in a separate process, with a real MLflow server."""

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
from gpt2_common.clients import add_client
from gpt2_common.database import open_database
from gpt2_common.events.outbox import list_pending_events

pytestmark = pytest.mark.process


@pytest.fixture
def artifacts(shared_artifacts):
    return shared_artifacts


@pytest.fixture
def registry(shared_registry):
    return shared_registry


def refused(call, code):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == code
    return caught.value.details()


def label_events(registry, name):
    """The changes of a model's labels whose events wait, as there is no Kafka."""
    with open_database(f"sqlite:///{registry.database}") as engine:
        events = [waiting.event for waiting in list_pending_events(engine, "/gpt2/registry", 1000)]
    kind = events_pb2.ModelLabelChanged
    changes = [kind.FromString(event.data) for event in events if event.type == kind.DESCRIPTOR.full_name]
    return [change for change in changes if change.model_name == name]


def test_two_replicas_and_their_jobs_change_a_label_one_after_the_other(
    start_registry, mlflow_uri, artifacts, tmp_path
):
    database = {"GPT2_DATABASE_URL": f"sqlite:///{tmp_path / 'shared.db'}"}
    replicas = [start_registry(mlflow_uri, **database) for _ in range(2)]
    model = artifacts.model()
    for _ in range(2):
        assert replicas[0].register(model_uri=model, model_name="shared").state == job_pb2.Job.STATE_SUCCEEDED

    def change(number):
        if number == 0:
            job = replicas[0].register(model_uri=model, model_name="shared", label="production")
            assert job.state == job_pb2.Job.STATE_SUCCEEDED, job.error
            return
        request = pb.SetLabelRequest(model_name="shared", version=number // 2 % 2 + 1, label="production")
        replicas[number % 2].stub.SetLabel(request, timeout=300)

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(change, range(17)))
    stub = replicas[1].stub
    history = stub.ListLabelChanges(pb.ListLabelChangesRequest(model_name="shared", label="production")).changes
    steps = [(entry.previous_version, entry.version) for entry in reversed(history)]
    assert len(steps) == 17
    assert [before for before, _ in steps] == [0, *(after for _, after in steps[:-1])], (
        "a change was not seen by the next"
    )
    versions = stub.ListModelVersions(pb.ListModelVersionsRequest(model_name="shared")).model_versions
    marked = [version.version for version in versions if "gpt2.label.production" in version.tags]
    ready = [version.version for version in versions if version.tags["readiness"] == "production"]
    assert marked == ready == [version.version for version in versions if version.labels] == [steps[-1][1]]


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
    assert json.loads(first.tags["gpt2.label.staging"])["actor"] == "unauthenticated"
    assert first.tags["readiness"] == "staging"

    moved = stub.SetLabel(
        pb.SetLabelRequest(model_name="life", version=3, label="staging", actor="ann", reason="better — Grüße")
    )
    assert (moved.previous_version, moved.model_version.version, moved.model_version.labels) == (1, 3, ["staging"])
    who = json.loads(moved.model_version.tags["gpt2.label.staging"])
    assert (who["actor"], who["reason"]) == ("ann (unauthenticated)", "better — Grüße")
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
    assert "no version of model 'life' has the label 'staging'" in details
    moves = [
        (event.previous_version, event.version, event.actor, event.job_id) for event in label_events(registry, "life")
    ]
    assert moves == [
        (0, 1, "unauthenticated", "run/register"),
        (1, 3, "ann (unauthenticated)", ""),
        (3, 0, "bob (unauthenticated)", ""),
    ]

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
    assert len(label_events(registry, "life")) == 3


def test_label_changes_name_who_proved_it(start_registry, mlflow_uri, artifacts, tmp_path):
    clients = tmp_path / "clients"
    ann = [("authorization", f"Bearer {add_client(clients, 'ann')}")]
    page = [("authorization", f"Bearer {add_client(clients, 'page', may_act_for_others=True)}")]
    registry = start_registry(mlflow_uri, GPT2_CLIENTS_FILE=str(clients))
    registry.metadata = ann
    job = registry.register(model_uri=artifacts.model(), model_name="signed", label="staging")
    assert (job.state, job.actor) == (job_pb2.Job.STATE_SUCCEEDED, "ann")

    def change(metadata, actor, clear=False):
        fields = {"model_name": "signed", "label": "staging", "actor": actor}
        if clear:
            return registry.stub.ClearLabel(pb.ClearLabelRequest(**fields), metadata=metadata)
        return registry.stub.SetLabel(pb.SetLabelRequest(**fields, version=1), metadata=metadata)

    for clear in (False, True):
        forged = refused(lambda: change(ann, "bob", clear), grpc.StatusCode.PERMISSION_DENIED)  # noqa: B023
        assert "actor: 'ann' may not act for 'bob'" in forged
    for metadata, actor in ((ann, ""), (ann, "ann"), (page, "bob"), (page, " ")):
        change(metadata, actor)
    change(page, "bob", clear=True)
    asked = pb.ListLabelChangesRequest(model_name="signed")
    changes = registry.stub.ListLabelChanges(asked, metadata=ann).changes
    calls = ["ann", "ann", "bob (by page)", "page", "bob (by page)"]
    recorded = [("ann", job.job_id), *((actor, "") for actor in calls)]
    assert [(change.actor, change.job_id) for change in reversed(changes)] == recorded
    assert [(event.actor, event.job_id) for event in label_events(registry, "signed")] == recorded


def test_racing_labels_are_on_one_version_and_a_whole_history(registry, artifacts):
    model = artifacts.model()
    for _ in range(2):
        registry.register(model_uri=model, model_name="race")

    def set_label(version):
        request = pb.SetLabelRequest(model_name="race", version=version, label="production", actor=f"actor {version}")
        return registry.stub.SetLabel(request).previous_version

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(set_label, [1, 2, 1, 2, 1, 2]))
    labelled = 0
    for event in label_events(registry, "race"):
        assert event.previous_version == labelled
        labelled = event.version
    changes = registry.stub.ListLabelChanges(pb.ListLabelChangesRequest(model_name="race")).changes
    assert sorted(change.actor for change in changes) == 3 * ["actor 1 (unauthenticated)"] + 3 * [
        "actor 2 (unauthenticated)"
    ]
    versions = registry.stub.ListModelVersions(pb.ListModelVersionsRequest(model_name="race")).model_versions
    assert [item.version for item in versions if "production" in item.labels] == [labelled]
    assert [item.version for item in versions if "gpt2.label.production" in item.tags] == [labelled]
    assert {item.version: item.tags["readiness"] for item in versions} == {
        labelled: "production",
        3 - labelled: "draft",
    }


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
