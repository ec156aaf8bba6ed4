"""RecordEvaluation, and what CompareModels makes of it, against a real MLflow server."""

import json
import math

import grpc
import pytest

from gpt2.registry.v1 import registry_service_pb2 as pb

from .conftest import PROVENANCE
from .test_service import refused

pytestmark = pytest.mark.process

DATASET = {
    "kind": "dataset",
    "uri": "file:///held-out",
    "digest": "9" * 64,
    "context_length": 64,
    "sequences": 10,
    "metrics": {"loss": 3.5, "perplexity": 33.1, "tokens": 640},
}
WORDS = {
    "kind": "lambada",
    "uri": "file:///words.jsonl",
    "digest": "8" * 64,
    "metrics": {"lambada_accuracy": 0.25, "lambada_examples": 4},
}


@pytest.fixture
def artifacts(shared_artifacts):
    return shared_artifacts


@pytest.fixture(scope="module")
def registry(shared_registry):
    return shared_registry


@pytest.fixture
def record(registry):
    def call(name: str, version: int, uri: str) -> pb.ModelVersion:
        request = pb.RecordEvaluationRequest(model_name=name, version=version, evaluation_uri=uri)
        return registry.stub.RecordEvaluation(request).model_version

    return call


def evaluation(artifacts, of: str, *measurements) -> str:
    return artifacts.make("evaluation", {"evaluation.json": json.dumps({"measurements": measurements})}, parents=[of])


def changed(loss: float, **changes) -> dict:
    return {**DATASET, **changes, "metrics": {**DATASET["metrics"], "loss": loss}}


def test_versions_are_compared_on_the_same_text(registry, record, artifacts):
    first, second = artifacts.model(), artifacts.model({**PROVENANCE, "step": 21})
    for model in (first, second):
        registry.register(model_uri=model, model_name="measured")
    record("measured", 1, evaluation(artifacts, first, DATASET, WORDS))
    # The same data at another place is the same data; in sequences of another length it is another measurement.
    record("measured", 2, evaluation(artifacts, second, changed(3.25, uri="file:///moved")))
    version = record("measured", 2, evaluation(artifacts, second, changed(2.0, context_length=32)))
    assert [item.metrics["loss"] for item in version.evaluations] == [2.0, 3.25]
    assert all(item.evaluation_uri and item.HasField("record_time") for item in version.evaluations)

    answer = registry.stub.CompareModels(pb.CompareModelsRequest(model_name="measured", versions=[2, 1]))
    found = {
        (item.measurement.kind, item.measurement.context_length): {row.name: list(row.values) for row in item.metrics}
        for item in answer.evaluations
    }
    assert found["dataset", 64]["loss"] == [3.25, 3.5]
    assert found["dataset", 32]["loss"][0] == 2.0
    assert math.isnan(found["dataset", 32]["loss"][1])
    assert math.isnan(found["lambada", 0]["lambada_accuracy"][0])
    assert found["lambada", 0]["lambada_accuracy"][1] == 0.25


def test_what_is_measured_again_is_replaced(registry, record, artifacts):
    model = artifacts.model()
    registry.register(model_uri=model, model_name="again")
    record("again", 1, evaluation(artifacts, model, DATASET))
    version = record("again", 1, evaluation(artifacts, model, changed(3.0)))
    assert [item.metrics["loss"] for item in version.evaluations] == [3.0]


def test_another_model_s_metrics_are_refused(registry, record, artifacts):
    registry.register(model_uri=artifacts.model(), model_name="mine")
    other = artifacts.model({**PROVENANCE, "step": 22})
    uri = evaluation(artifacts, other, DATASET)
    assert "not the model of version 1 of mine" in refused(
        lambda: record("mine", 1, uri), grpc.StatusCode.FAILED_PRECONDITION
    )
    got = registry.stub.GetModelVersion(pb.GetModelVersionRequest(model_name="mine", version=1)).model_version
    assert not got.evaluations


@pytest.fixture(scope="module")
def whole(registry, shared_artifacts):
    """A model that is registered as `whole`, and has no evaluation."""
    model = shared_artifacts.model()
    registry.register(model_uri=model, model_name="whole")
    return model


@pytest.mark.parametrize(
    ("content", "status", "details"),
    [
        (None, grpc.StatusCode.FAILED_PRECONDITION, "evaluate the model again"),
        ("{", grpc.StatusCode.DATA_LOSS, "is damaged"),
        ("[]", grpc.StatusCode.DATA_LOSS, "is damaged"),
        ('{"measurements": [{"kind": "dataset"}]}', grpc.StatusCode.DATA_LOSS, "is damaged"),
        (json.dumps({"measurements": [{**DATASET, "metrics": {"loss": "low"}}]}), grpc.StatusCode.DATA_LOSS, "damaged"),
    ],
)
def test_a_damaged_evaluation_changes_nothing(registry, record, artifacts, whole, content, status, details):
    files = {"metrics.json": "{}", **({} if content is None else {"evaluation.json": content})}
    uri = artifacts.make("evaluation", files, parents=[whole])
    assert details in refused(lambda: record("whole", 1, uri), status)
    got = registry.stub.GetModelVersion(pb.GetModelVersionRequest(model_name="whole", version=1)).model_version
    assert not got.evaluations


def test_a_wrong_request_gets_all_its_problems(registry, artifacts):
    empty = pb.RecordEvaluationRequest()
    details = refused(lambda: registry.stub.RecordEvaluation(empty), grpc.StatusCode.INVALID_ARGUMENT)
    for field in ("model_name", "version", "evaluation_uri"):
        assert field in details
    missing = pb.RecordEvaluationRequest(
        model_name="nobody", version=1, evaluation_uri=evaluation(artifacts, artifacts.model(), DATASET)
    )
    assert "nobody" in refused(lambda: registry.stub.RecordEvaluation(missing), grpc.StatusCode.NOT_FOUND)
