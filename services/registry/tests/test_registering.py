"""What RegisterModel decides, on a registry in memory: one version a job, its gate, its label."""

import json

import pytest

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.database import open_database
from gpt2_common.errors import DataLoss
from gpt2_common.events.outbox import list_pending_events
from gpt2_registry import jobs
from gpt2_registry.label_lock import LabelLock
from gpt2_registry.label_rules import LabelRules
from gpt2_registry.labels import LabelChange, Labels

from .conftest import PROVENANCE
from .in_memory_registry import InMemoryRegistry, InMemoryVersionWriter

NAME = "model"
RULES = {"staging": {"from": ["draft"]}, "production": {"from": ["staging"]}}


@pytest.fixture
def registry(monkeypatch) -> InMemoryRegistry:
    registry = InMemoryRegistry()
    monkeypatch.setattr(jobs, "MlflowRegistry", lambda _connection: registry)
    monkeypatch.setattr(jobs, "VersionWriter", lambda _connection, *names: InMemoryVersionWriter(registry, *names))
    return registry


@pytest.fixture
def register(registry, artifacts, make_unconnected_context):
    """Registers a model of some loss; returns the outcome of its label."""

    def run(job_id: str, loss: float | None = 3.0, provenance=(), rules: str = "", **fields) -> str:
        model = artifacts.model({**PROVENANCE, "validation_loss": loss, "validations": [], **dict(provenance)})
        request = pb.RegisterModelRequest(**{"model_uri": model, "model_name": NAME, "label": "staging", **fields})
        [output] = jobs.register_model(request, make_unconnected_context(job_id, label_rules=rules))
        return output.properties["label_outcome"]

    return run


def test_gates_compare_with_a_limit_and_with_the_holder(registry, register):
    improve, limit = pb.LabelGate(must_improve=True), pb.LabelGate(max_validation_loss=3.0)
    assert register("first", 3.0, label_gate=limit) == "set"
    assert "is over the 3 allowed" in register("over", 3.5, label_gate=limit)
    assert "is not under the 3 of version 1" in register("equal", 3.0, label_gate=improve)
    assert "is not known" in register("unknown", None, label_gate=improve)
    other = {"tokenizer_digest": "a" * 64}
    assert "another tokenizer" in register("tokenizer", 1.0, provenance=other, label_gate=improve)
    assert "worse validation loss" in register("ruined", 1.0, provenance={"regressed": True})
    assert registry.labels(NAME) == {"staging": 1}
    assert register("better", 2.5, label_gate=improve) == "set"
    assert registry.labels(NAME) == {"staging": 7}
    assert register("allowed", provenance={"regressed": True}, label_despite_regression=True) == "set"


def test_gates_compare_bits_per_byte_where_tokenizers_differ(registry, register):
    improve, limit = pb.LabelGate(must_improve=True), pb.LabelGate(max_bits_per_byte=1.5)

    def outcome(job_id, loss, bits, tokenizer, gate):
        facts = {"validation_bits_per_byte": bits, "tokenizer_digest": tokenizer * 64}
        return register(job_id, loss, provenance=facts, label_gate=gate)

    assert "is over the 1.5 allowed" in outcome("over", 3.0, 1.6, "a", limit)
    assert "validation_bits_per_byte is not known" in outcome("unknown", 3.0, None, "a", limit)
    assert outcome("first", 3.0, 1.4, "a", limit) == "set"
    assert "bits per byte of 1.45 is not under the 1.4 of version 3" in outcome("lower-loss", 2.0, 1.45, "b", improve)
    assert outcome("higher-loss", 4.0, 1.3, "b", improve) == "set"
    assert registry.labels(NAME) == {"staging": 5}


def test_rules_of_labels_hold_for_registrations(registry, register, tmp_path):
    rules = json.dumps(RULES)
    assert "it is draft; allowed from staging" in register("draft", label="production", rules=rules)
    assert register("staged", label="staging", rules=rules) == "set"
    with open_database(f"sqlite:///{tmp_path / 'locks.db'}") as engine:
        Labels(registry, LabelRules.parse(rules), lambda _event: None, LabelLock(engine, 30.0)).set(
            LabelChange(model_name=NAME, label="production", actor="ann", reason=""), 2
        )
    assert registry.version(NAME, 2).labels == ["production", "staging"]
    assert registry.version(NAME, 2).tags["readiness"] == "production,staging"


def test_a_repeated_job_makes_one_version_and_keeps_its_decision(registry, register, artifacts, tmp_path):
    model = artifacts.model()
    for _ in range(2):
        assert register("job", model_uri=model, reason="nightly") == "set"
        assert len(registry.page(NAME, 10, "")[0]) == 1
    registry.remove_label(NAME, "staging")
    register("job", model_uri=model)
    # Somebody took the label away since.
    assert registry.labels(NAME) == {}
    with open_database(f"sqlite:///{tmp_path / 'registry.db'}") as engine:
        [pending] = list_pending_events(engine, "/gpt2/registry", 10)
    assert pending.event.type == "gpt2.events.v1.ModelLabelChanged"


def test_damaged_metrics_leave_a_failed_run_and_no_version(registry, register, artifacts):
    logs = artifacts.make("logs", {"metrics.jsonl": '{"step": 1, "lo\n'})
    with pytest.raises(DataLoss, match="line 1 is damaged"):
        register("job", logs_uri=logs)
    assert [run.status for run in registry.runs] == ["FAILED"]
    assert registry.find(NAME, {}) is None
