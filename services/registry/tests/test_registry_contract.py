"""What labels, rules and jobs rely on of a registry: one suite for the one in memory and for MLflow's."""

import uuid

import pytest

from gpt2_common.errors import InvalidRequest, NotFound
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.mlflow_registry import MlflowRegistry
from gpt2_registry.mlflow_versions import VersionWriter
from gpt2_registry.model_metadata import MetricPoint

from .in_memory_registry import InMemoryRegistry, InMemoryVersionWriter


@pytest.fixture(params=["memory", pytest.param("mlflow", marks=pytest.mark.process)])
def kind(request):
    return request.param


@pytest.fixture
def registry(kind, request) -> MlflowRegistry:
    if kind == "memory":
        return InMemoryRegistry()
    return MlflowRegistry(MlflowConnection(request.getfixturevalue("mlflow_uri")))


@pytest.fixture
def writer(kind, registry):
    """Makes the writer of a job's version."""

    def make(name: str, job_id: str) -> VersionWriter:
        identity = {"gpt2.job_id": job_id, "gpt2.request_digest": "f" * 64}
        if kind == "memory":
            return InMemoryVersionWriter(registry, name, identity)
        return VersionWriter(registry.connection, name, identity)

    return make


@pytest.fixture
def add(kind, registry, writer):
    """Makes a version without the files of a model."""

    def make(name: str, tags=(), loss: float = 4.0) -> int:
        job = writer(name, f"job-{uuid.uuid4().hex}")
        run = job.open_run()
        list(job.log_metrics(run, [MetricPoint("validation_loss", loss, 1)]))
        if kind == "memory":
            return job.create_version(run, "model", dict(tags), "")
        with registry.connection.client() as client:
            job._ensure_model(client)
            source = f"{run.info.artifact_uri}/model"
            made = client.create_model_version(name, source, run.info.run_id, tags=dict(tags))
        return int(made.version)

    return make


@pytest.fixture
def name():
    return f"contract-{uuid.uuid4().hex}"


def test_what_is_not_there_is_not_found(registry, add, name):
    for call in (registry.labels, lambda model: registry.version(model, 1), lambda model: registry.page(model, 1, "")):
        with pytest.raises(NotFound, match="there is no model"):
            call(name)
    add(name)
    with pytest.raises(NotFound, match="has no version 2"):
        registry.version(name, 2)
    with pytest.raises(NotFound, match="has the label"):
        registry.version_by_label(name, "staging")
    for change in (registry.delete_version, lambda model, number: registry.move_label(model, "staging", number)):
        with pytest.raises(NotFound):
            change(name, 2)


def test_versions_have_tags_and_the_metrics_of_the_weights_registered(registry, add, name):
    assert add(name, {"a": "1"}, loss=4.0) == 1
    assert add(name, {"gpt2.validation_loss": "3.5"}, loss=4.0) == 2
    first, second = registry.version(name, 1), registry.version(name, 2)
    assert (first.version, first.labels, first.tags["a"], first.validation_loss) == (1, [], "1", 4.0)
    assert second.validation_loss == 3.5
    assert second.metrics["validation_perplexity"] == pytest.approx(33.115, abs=0.001)
    assert second.created_millis >= first.created_millis
    registry.set_version_tag(name, 1, "a", "2")
    registry.set_version_tag(name, 1, "b", "3")
    registry.delete_version_tag(name, 1, "missing")
    registry.delete_version_tag(name, 1, "b")
    assert {tag: registry.version(name, 1).tags.get(tag) for tag in ("a", "b")} == {"a": "2", "b": None}
    registry.set_model_tag(name, "history", "x")
    assert registry.model_tags(name)["history"] == "x"


def test_a_label_has_one_holder_and_goes_with_it(registry, add, name):
    add(name)
    add(name)
    registry.move_label(name, "staging", 1)
    registry.move_label(name, "production", 1)
    registry.move_label(name, "staging", 2)
    assert registry.labels(name) == {"staging": 2, "production": 1}
    assert registry.version(name, 1).labels == ["production"]
    assert registry.version_by_label(name, "staging").version == 2
    registry.remove_label(name, "production")
    assert registry.labels(name) == {"staging": 2}
    registry.delete_version(name, 2)
    assert registry.labels(name) == {}
    assert add(name) in (2, 3)


def test_pages_are_newest_first_and_refuse_other_tokens(registry, add, name):
    for _ in range(3):
        add(name)
    first, token = registry.page(name, 2, "")
    second, end = registry.page(name, 2, token)
    assert [version.version for version in (*first, *second)] == [3, 2, 1]
    assert (bool(token), end) == (True, "")
    with pytest.raises(InvalidRequest, match="page_token"):
        registry.page(name, 2, "no token")
    registry.move_label(name, "staging", 3)
    models, token = [], ""
    while not models or token:
        page, token = registry.models(100, token)
        models += page
    [model] = [model for model in models if model.model_name == name]
    assert (model.labels, model.latest_version) == ({"staging": 3}, 3)


def test_a_job_finds_what_it_has_made_and_no_other_jobs(kind, registry, writer, name):
    job, other = writer(name, "one"), writer(name, "two")
    assert job.find_version() is None
    runs = [writer(name, "one").open_run() for _ in range(2)]
    ids = {run.run_id if kind == "memory" else run.info.run_id for run in runs}
    assert len(ids) == 1
    assert other.find_version() is None
