"""What is refused before anything is asked of MLflow."""

import pytest
from request_problems import request_problems

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.settings import SettingsError, load_settings
from gpt2_registry import validation
from gpt2_registry.label_rules import LabelRules
from gpt2_registry.labels import label_tag
from gpt2_registry.settings import RegistrySettings


def fields(problems):
    return [field for field, _ in problems]


def problems_of(request):
    own = validation.register_problems(request, LabelRules.parse(""))
    return request_problems(request, own)


def register(**changes):
    request = {"model_uri": "file:///allowed/model", "model_name": "news-de", **changes}
    return fields(problems_of(pb.RegisterModelRequest(**request)))


def test_whole_request_is_looked_at_at_once():
    request = pb.RegisterModelRequest(label="latest", reason="x" * 1001, tags={"mlflow.x": "y"})
    assert fields(problems_of(request)) == ["model_uri", "model_name", "label", "reason", "tags"]


@pytest.mark.parametrize("name", ["a", "News model v2.1_x-y", "x" * 200, "v1", "latest"])
def test_good_model_names(name):
    assert register(model_name=name) == []


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "a:b", "it's", "naïve", "x" * 201, "a\nb", "a' or name = 'b"])
def test_bad_model_names(name):
    assert register(model_name=name) == ["model_name"]


@pytest.mark.parametrize("label", ["staging", "Production_2", "v", "v1x", "1", "-", "x" * 255, "latest2"])
def test_good_labels(label):
    assert register(label=label) == []


@pytest.mark.parametrize("label", ["latest", "LATEST", "v1", "V22", "a b", "a.b", "ä", "x" * 256, "a@b", "stag\n"])
def test_bad_labels(label):
    assert register(label=label) == ["label"]


@pytest.mark.parametrize(
    "tags",
    [
        {"gpt2.job_id": "x"},
        {"GPT2.label.production": "x"},
        {"mlflow.user": "x"},
        {"readiness": "production"},
        {"": "x"},
        {"a'b": "x"},
        {"x" * 251: "x"},
        {"a": "x" * 5001},
        {f"tag{n}": "x" for n in range(51)},
    ],
)
def test_bad_tags(tags):
    assert {field.partition("[")[0] for field in register(tags=tags)} == {"tags"}


def test_good_tags():
    assert register(tags={f"team/{n}": "x" for n in range(50)}) == []


@pytest.mark.parametrize(
    ("gate", "wrong"),
    [
        ({"max_validation_loss": 3.0}, []),
        ({"max_bits_per_byte": 1.5}, []),
        ({"max_bits_per_byte": 0.0}, ["label_gate.max_bits_per_byte"]),
        ({"must_improve": True}, []),
        ({}, ["label_gate"]),
        ({"max_validation_loss": 0.0}, ["label_gate.max_validation_loss"]),
        ({"max_validation_loss": float("nan")}, ["label_gate.max_validation_loss"]),
        ({"max_validation_loss": float("inf")}, ["label_gate.max_validation_loss"]),
    ],
)
def test_gates(gate, wrong):
    assert register(label="staging", label_gate=pb.LabelGate(**gate)) == wrong
    assert sorted(register(label_gate=pb.LabelGate(**gate))) == ["label", *wrong]


def test_labels_need_an_actor_and_a_version():
    request = pb.SetLabelRequest(model_name="m", label="staging", actor="a" * 201)
    assert fields(request_problems(request)) == ["version", "actor"]
    assert fields(request_problems(pb.ClearLabelRequest())) == ["model_name", "label"]


@pytest.mark.parametrize("selector", [{}, {"version": 0}, {"version": -1}, {"label": ""}, {"label": "v1"}])
def test_versions_are_named_by_number_or_label(selector):
    assert len(request_problems(pb.GetModelVersionRequest(model_name="m", **selector))) == 1


def test_names_of_tags_are_never_too_long():
    long, other = "x" * 255, "x" * 254 + "y"
    assert len(label_tag(long)) == 250
    assert label_tag(long) != label_tag(other)
    assert label_tag("staging") == "gpt2.label.staging"


@pytest.mark.parametrize("uri", ["", "localhost:5000", "sqlite:///x.db", "http://user:secret@host:5000"])
def test_bad_addresses_of_mlflow(monkeypatch, uri):
    monkeypatch.setenv("GPT2_MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SettingsError, match="GPT2_MLFLOW_TRACKING_URI") as caught:
        load_settings(RegistrySettings)
    assert "secret" not in str(caught.value)
