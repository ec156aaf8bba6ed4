"""Which label may go where: the rules themselves, and the registry that keeps them."""

import json

import grpc
import pytest

from gpt2.jobs.v1 import job_pb2
from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.settings import SettingsError, load_settings
from gpt2_registry.jobs import register_model
from gpt2_registry.settings import RegistrySettings

from .conftest import PROVENANCE, RegistryProcess
from .test_service import refused

RULES = json.dumps(
    {
        "staging": {"from": ["draft"]},
        "production": {"from": ["staging"], "metrics": {"validation_loss": {"max": 3.5}}},
        "retired": {"from": ["production"]},
    }
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ("[]", "must be JSON"),
        ('{"staging": {"form": []}}', "staging.form"),
        ('{"staging": {"from": ["tested"]}}', "names tested in 'from'"),
        ('{"staging": {"metrics": {"validation_loss": {}}}}', "needs min, max or both"),
        ('{"staging": {"metrics": {"validation_loss": {"max": "NaN"}}}}', "finite"),
    ],
)
def test_wrong_rules_stop_the_service(monkeypatch, text, message):
    monkeypatch.setenv("GPT2_LABEL_RULES", text)
    with pytest.raises(SettingsError, match="GPT2_LABEL_RULES") as caught:
        load_settings(RegistrySettings)
    assert message in str(caught.value)


@pytest.fixture
def artifacts(shared_artifacts):
    return shared_artifacts


@pytest.fixture(scope="module")
def registry(tmp_path_factory, shared_artifacts, mlflow_uri):
    rules = {"GPT2_LABEL_RULES": RULES}
    process = RegistryProcess(tmp_path_factory.mktemp("ruled"), shared_artifacts.root, mlflow_uri, rules)
    yield process
    process.close()


def test_moves_follow_the_rules(registry, artifacts):
    good = artifacts.model()
    bad = artifacts.model({**PROVENANCE, "validation_loss": 3.75})
    for model in (good, bad):
        assert registry.register(model_uri=model, model_name="ruled").state == job_pb2.Job.STATE_SUCCEEDED

    def label(version, name):
        request = pb.SetLabelRequest(model_name="ruled", version=version, label=name, actor="ann")
        return registry.stub.SetLabel(request).model_version

    def refusal(version, name):
        return refused(lambda: label(version, name), grpc.StatusCode.FAILED_PRECONDITION)

    assert "'tested' is not allowed: GPT2_LABEL_RULES has staging, production, retired" in refusal(1, "tested")
    assert "may not be production: it is draft; allowed from staging" in refusal(1, "production")
    label(1, "staging")
    assert label(1, "production").labels == ["production", "staging"]
    assert label(1, "production").labels == ["production", "staging"]
    label(2, "staging")
    assert "its validation_loss of 3.75 is over the 3.5 allowed" in refusal(2, "production")
    assert label(1, "retired").labels == ["production", "retired"]

    unknown = pb.RegisterModelRequest(model_uri=good, model_name="ruled", label="tested")
    refused(lambda: registry.stub.RegisterModel(unknown), grpc.StatusCode.INVALID_ARGUMENT)
    asked = pb.ListLabelChangesRequest(model_name="ruled", label="staging")
    changes = registry.stub.ListLabelChanges(asked).changes
    assert [(change.previous_version, change.version, change.actor) for change in changes] == [
        (1, 2, "ann (unauthenticated)"),
        (0, 1, "ann (unauthenticated)"),
    ]
    assert changes[0].time.ToNanoseconds() >= changes[1].time.ToNanoseconds() > 0
    assert len(registry.stub.ListLabelChanges(pb.ListLabelChangesRequest(model_name="ruled")).changes) == 5


def test_version_with_a_label_is_not_deleted(registry, artifacts):
    for label in ("staging", ""):
        registry.register(model_uri=artifacts.model(), model_name="deleted", label=label)

    def delete(version):
        return registry.stub.DeleteModelVersion(pb.DeleteModelVersionRequest(model_name="deleted", version=version))

    details = refused(lambda: delete(1), grpc.StatusCode.FAILED_PRECONDITION)
    assert "version 1 of 'deleted' is staging" in details
    delete(2)
    refused(lambda: delete(2), grpc.StatusCode.NOT_FOUND)
    registry.stub.ClearLabel(pb.ClearLabelRequest(model_name="deleted", label="staging", actor="ann"))
    delete(1)
    assert not registry.stub.ListModelVersions(pb.ListModelVersionsRequest(model_name="deleted")).model_versions


def test_registration_gets_what_the_rules_refuse(artifacts, make_context):
    request = pb.RegisterModelRequest(model_uri=artifacts.model(), model_name="refused", label="production")
    [output] = register_model(request, make_context("refused", label_rules=RULES))
    assert output.properties["label_outcome"] == "not set: it is draft; allowed from staging"
