"""CompareModels and ListModels, against a real MLflow server."""

import math

import grpc
import pytest

from gpt2.registry.v1 import registry_service_pb2 as pb

from .conftest import PROVENANCE
from .test_service import refused

pytestmark = pytest.mark.process


@pytest.fixture
def artifacts(shared_artifacts):
    return shared_artifacts


@pytest.fixture
def registry(shared_registry):
    return shared_registry


def rows(compared):
    return {row.name: list(row.values) for row in compared}


def test_versions_are_compared(registry, artifacts):
    other = {
        **PROVENANCE,
        "dataset_digest": "a" * 64,
        "train_config": {**PROVENANCE["train_config"], "steps": 40, "warmup_steps": 2},
        "validations": [{"step": 40, "loss": 3.0}],
        "samples": [],
    }
    # The training continues after the step of the weights that are kept, and gets worse.
    logs = artifacts.logs([{"step": 1, "loss": 9.5}, {"step": 60, "validation_loss": 4.5}])
    registry.register(model_uri=artifacts.model(), model_name="sides", label="staging")
    registry.register(model_uri=artifacts.model(other), model_name="sides", logs_uri=logs)

    answer = registry.stub.CompareModels(pb.CompareModelsRequest(model_name="sides", versions=[2, 1]))
    assert [(item.version, item.labels) for item in answer.model_versions] == [(2, []), (1, ["staging"])]
    metrics = rows(answer.metrics)
    assert metrics["loss"][0] == 9.5
    assert math.isnan(metrics["loss"][1])
    assert metrics["validation_loss"] == [3.25, 3.25]
    assert metrics["validation_perplexity"] == pytest.approx([math.exp(3.25)] * 2)
    assert rows(answer.parameters) == {"train.steps": ["40", "20"], "train.warmup_steps": ["2", ""]}
    lineage = rows(answer.lineage)
    assert lineage["dataset_digest"] == ["a" * 64, "d" * 64]
    assert lineage["tokenizer_digest"] == ["e" * 64, "e" * 64]
    assert lineage["logs_digest"][1] == ""
    assert answer.samples[0] == ""
    assert "Grüße" in answer.samples[1]

    missing = pb.CompareModelsRequest(model_name="sides", versions=[1, 9])
    assert "no version 9" in refused(lambda: registry.stub.CompareModels(missing), grpc.StatusCode.NOT_FOUND)
    for versions, problem in (
        ([], "versions: is required: 2 to 20 items"),
        ([1], "versions: must have 2 to 20 items, not 1"),
        ([1, 1], "versions[1]: 1 is there twice"),
        ([0, 1], "versions[0]: must be 1 or greater, not 0"),
        (range(1, 22), "versions: must have 2 to 20 items, not 21"),
    ):
        wrong = pb.CompareModelsRequest(model_name="sides", versions=versions)
        details = refused(lambda wrong=wrong: registry.stub.CompareModels(wrong), grpc.StatusCode.INVALID_ARGUMENT)
        assert problem in details


def test_models_are_listed_by_name(registry, artifacts):
    model = artifacts.model()
    registry.register(model_uri=model, model_name="listed b", label="staging")
    registry.register(model_uri=model, model_name="listed b")
    registry.register(model_uri=model, model_name="listed a")
    found, token = [], ""
    while True:
        page = registry.stub.ListModels(pb.ListModelsRequest(page_size=1, page_token=token))
        found += page.models
        token = page.next_page_token
        if not token:
            break
    listed = [item for item in found if item.model_name.startswith("listed")]
    assert [(item.model_name, dict(item.labels), item.latest_version) for item in listed] == [
        ("listed a", {}, 1),
        ("listed b", {"staging": 1}, 2),
    ]
    wrong = pb.ListModelsRequest(page_token="nonsense")
    refused(lambda: registry.stub.ListModels(wrong), grpc.StatusCode.INVALID_ARGUMENT)
