"""Requests are checked against the rules that their fields have in the protos."""

import math

import pytest

from gpt2.registry.v1.registry_service_pb2 import LabelGate, RegisterModelRequest
from gpt2.trainer.v1.trainer_service_pb2 import TrainConfig, TrainModelRequest
from gpt2_rules import describe, is_required, violations


def test_a_request_that_keeps_all_rules_breaks_none():
    request = RegisterModelRequest(
        model_uri="file:///m",
        model_name="My model-1.0",
        label="x" * 255,
        reason="ü" * 1000,
        tags={f"tag {number}": "v" * 5000 for number in range(50)},
        label_gate=LabelGate(max_validation_loss=1e-9),
    )
    assert violations(request) == []


def test_all_that_is_wrong_is_said_with_paths_in_the_order_of_the_fields():
    request = RegisterModelRequest(
        model_name=" . ",
        label="Staging Area",
        reason="ü" * 1001,
        tags={"a\n": "v", "b": "v" * 5001},
        label_gate=LabelGate(max_validation_loss=math.nan),
    )
    assert violations(request) == [
        ("model_uri", "is required"),
        (
            "model_name",
            "must be letters, digits, '_', '-', '.' and spaces, and not blank, 200 characters at most, not ' . '",
        ),
        (
            "label",
            "must be letters, digits, '_' and '-', and not 'latest' or 'v' with digits, which MLflow reserves, "
            "255 characters at most, not 'Staging Area'",
        ),
        ("reason", "must have 1,000 characters at most, not 1,001"),
        ("tags['a\\n']", "the key must be letters, digits and '_-.:/ ', 250 characters at most, not 'a\\n'"),
        ("tags['b']", "must have 5,000 characters at most, not 5,001"),
        ("label_gate.max_validation_loss", "must be over 0, not nan"),
    ]


@pytest.mark.parametrize("name", ["latest", "LATEST", "v1", "V23", "a b", "ä", "x\n", "x" * 256])
def test_labels_that_are_none(name):
    request = RegisterModelRequest(model_uri="file:///m", model_name="m", label=name)
    assert [field for field, _ in violations(request)] == ["label"]


def test_fields_inside_messages_and_unset_fields_without_presence():
    config = TrainConfig(steps=-1, learning_rate=math.inf, optimizer="x", spike_factor=1, beta1=0, clip_norm=-1)
    found = violations(TrainModelRequest(dataset_uri="file:///d", model_size="124M", config=config))
    assert found == [
        ("config.steps", "must be 1 or greater, not -1"),
        ("config.optimizer", "must be one of adamw, adam, sgd, adafactor, muon, not 'x'"),
        ("config.learning_rate", "must be over 0, not inf"),
        ("config.clip_norm", "must be 0 or greater, not -1.0"),
        ("config.spike_factor", "must be 0 or over 1, not 1.0"),
    ]


def test_rules_in_words():
    fields = RegisterModelRequest.DESCRIPTOR.fields_by_name
    assert describe(fields["tags"]) == (
        "50 items at most; each key letters, digits and '_-.:/ ', 250 characters at most; "
        "each value 5,000 characters at most"
    )
    assert describe(TrainConfig.DESCRIPTOR.fields_by_name["beta1"]) == "0 to under 1"
    assert describe(fields["logs_uri"]) == ""
    assert [name for name in fields if is_required(fields[name])] == ["model_uri", "model_name"]
