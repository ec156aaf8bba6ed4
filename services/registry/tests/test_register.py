"""RegisterModel's work, in this process, against a real MLflow server."""

import math
import sys
from unittest.mock import Mock

import mlflow
import pytest
from free_ports import free_port

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.database import open_database
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, JobCancelled, NotFound, Unavailable
from gpt2_common.events.outbox import list_pending_events
from gpt2_common.jobs.context import Interruption
from gpt2_registry.jobs import register_model
from gpt2_registry.mlflow_versions import VersionWriter

from .conftest import PROVENANCE

pytestmark = pytest.mark.process

METRICS = [
    {"step": 1, "loss": 9.5, "learning_rate": 0.001, "gradient_norm": None},
    {"step": 2, "validation_loss": 3.5, "validation_perplexity": math.exp(3.5)},
    {"step": 3, "loss": 8.5, "learning_rate": 0.0005, "gradient_norm": 1.0},
]


@pytest.fixture
def client(mlflow_uri):
    return mlflow.MlflowClient(mlflow_uri, mlflow_uri)


@pytest.fixture
def name(request):
    return f"{request.node.name[:60]}".replace("[", "-").replace("]", "")


def versions_of(client, name):
    return client.search_model_versions(f"name = '{name}'")


def test_version_has_all_of_it(client, name, artifacts, make_context):
    request = pb.RegisterModelRequest(
        model_uri=artifacts.model(), logs_uri=artifacts.logs(METRICS), model_name=name, tags={"team": "news"}
    )
    [output] = register_model(request, make_context("demo/register"))

    assert (output.name, output.kind, output.uri) == ("version", "version", f"models:/{name}/1")
    assert output.counts == {"version": 1, "validation_loss": 3.25}
    assert output.properties["model_name"] == name
    assert output.properties["version"] == "1"
    assert output.properties["model_uri"] == output.uri
    [version] = versions_of(client, name)
    assert output.properties["run_url"].endswith(f"/runs/{version.run_id}")
    assert version.tags["gpt2.job_id"] == "demo/register"
    assert version.tags["gpt2.run_id"] == "run-of-demo/register"
    assert version.tags["gpt2.model_digest"] == output.digest
    assert version.tags["gpt2.dataset_digest"] == PROVENANCE["dataset_digest"]
    assert version.tags["gpt2.tokenizer_digest"] == PROVENANCE["tokenizer_digest"]
    assert version.tags["gpt2.validation_loss"] == "3.25"
    assert version.tags["readiness"] == "draft"
    assert version.tags["team"] == "news"

    assert "Validation loss **3.250** nats per token" in version.description
    assert PROVENANCE["dataset_digest"] in version.description

    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == version.description
    assert run.data.params["train.learning_rate"] == "0.0006"
    assert run.data.params["train.sampling.top_k"] == "40"
    assert run.data.params["model.n_layer"] == "2"
    assert [(item.step, item.value) for item in client.get_metric_history(version.run_id, "loss")] == [
        (1, 9.5),
        (3, 8.5),
    ]
    assert [item.value for item in client.get_metric_history(version.run_id, "gradient_norm")] == [1.0]
    assert run.data.metrics["validation_perplexity"] == pytest.approx(math.exp(3.25))
    assert "Grüße" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/samples.txt")

    [logged] = client.search_logged_models([run.info.experiment_id])
    assert (str(logged.status), logged.source_run_id) == ("READY", version.run_id)
    assert logged.params["train.learning_rate"] == "0.0006"
    assert {(item.key, item.value, item.step) for item in logged.metrics} == {
        ("validation_loss", 3.25, 20),
        ("validation_perplexity", math.exp(3.25), 20),
    }
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]


def test_nothing_is_pickled_and_tensorflow_is_not_imported(
    client, name, artifacts, make_context, tmp_path, monkeypatch
):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    [output] = register_model(
        pb.RegisterModelRequest(model_uri=artifacts.model(), model_name=name), make_context("pickle")
    )
    assert "tensorflow" not in sys.modules
    [version] = versions_of(client, name)
    downloads = tmp_path / "downloads"
    mlflow.artifacts.download_artifacts(output.uri, dst_path=str(downloads), tracking_uri=client.tracking_uri)
    files = {path.name for path in downloads.rglob("*") if path.is_file()}
    assert {"serving_model.py", "saved_model.pb", "tokenizer.json", "config.json", "MLmodel"} <= files
    assert not [file for file in files if file.endswith((".pkl", ".pickle"))]
    assert "model.safetensors" not in files
    assert version.status == "READY"


def test_metrics_come_in_batches(client, name, artifacts, make_context):
    logs = artifacts.logs([{"step": step, "loss": float(step), "rate": 1.0} for step in range(1, 1203)])
    register_model(
        pb.RegisterModelRequest(model_uri=artifacts.model(), logs_uri=logs, model_name=name), make_context("b")
    )
    [version] = versions_of(client, name)
    history = client.get_metric_history(version.run_id, "loss")
    assert sorted(item.step for item in history) == list(range(1, 1203))


def test_model_without_provenance_is_registered(client, name, artifacts, make_context):
    uri = artifacts.model(provenance=None)
    [output] = register_model(pb.RegisterModelRequest(model_uri=uri, model_name=name), make_context("bare"))
    assert output.counts == {"version": 1}


def test_model_without_logs_has_the_validations_of_its_provenance(client, name, artifacts, make_context):
    register_model(pb.RegisterModelRequest(model_uri=artifacts.model(), model_name=name), make_context("no-logs"))
    [version] = versions_of(client, name)
    history = client.get_metric_history(version.run_id, "validation_loss")
    assert [(item.step, item.value) for item in history] == [(10, 4.0), (20, 3.25)]


REPRESENTATIVE_KILLS = (("_upload", "after"), ("create_version", "after"))
"""With a model that nothing refers to yet, and with a version that no job knows of."""


class Killed(BaseException):
    """Stands for the end of the process: no handler of ours hears of it in time."""


@pytest.mark.parametrize(
    ("method", "moment"),
    [
        pytest.param(method, moment, marks=() if (method, moment) in REPRESENTATIVE_KILLS else pytest.mark.exhaustive)
        for moment in ("before", "after")
        for method in ("open_run", "log_metadata", "_upload", "log_model", "create_version")
    ],
)
def test_killed_job_makes_one_version(client, name, artifacts, make_context, monkeypatch, method, moment):
    request = pb.RegisterModelRequest(
        model_uri=artifacts.model(), logs_uri=artifacts.logs(METRICS), model_name=name, label="staging"
    )
    with monkeypatch.context() as patch:
        original = getattr(VersionWriter, method)

        def dying(*arguments):
            if moment == "after":
                original(*arguments)
            raise Killed

        patch.setattr(VersionWriter, method, dying)
        patch.setattr(VersionWriter, "_end", Mock())
        with pytest.raises(Killed):
            register_model(request, make_context("killed"))
    first = register_model(request, make_context("killed"))
    again = register_model(request, make_context("killed"))
    assert first == again
    [version] = versions_of(client, name)
    assert version.version == "1"
    experiment = client.get_experiment_by_name(name)
    [run] = client.search_runs([experiment.experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 2
    assert len(client.search_logged_models([experiment.experiment_id])) == 1


def test_half_uploaded_model_is_made_again(client, name, artifacts, make_context, monkeypatch):
    request = pb.RegisterModelRequest(model_uri=artifacts.model(), model_name=name)
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_model_artifacts", Mock(side_effect=Killed))
        patch.setattr("mlflow.MlflowClient.finalize_logged_model", Mock())
        with pytest.raises(Killed):
            register_model(request, make_context("half"))
    experiment = client.get_experiment_by_name(name).experiment_id
    [unfinished] = client.search_logged_models([experiment])
    assert str(unfinished.status) != "READY"
    register_model(request, make_context("half"))
    [whole] = client.search_logged_models([experiment])
    assert whole.model_id != unfinished.model_id


def test_other_job_makes_another_version(client, name, artifacts, make_context):
    request = pb.RegisterModelRequest(model_uri=artifacts.model(), model_name=name)
    numbers = [register_model(request, make_context(job))[0].properties["version"] for job in ("one", "two")]
    assert numbers == ["1", "2"]


def test_label_is_set_once_and_its_event_waits(client, name, artifacts, make_context, tmp_path):
    request = pb.RegisterModelRequest(model_uri=artifacts.model(), model_name=name, label="staging", reason="nightly")
    register_model(request, make_context("labelled"))
    assert client.get_model_version_by_alias(name, "staging").version == "1"
    client.delete_registered_model_alias(name, "staging")
    register_model(request, make_context("labelled"))
    # Somebody took it away since: a repetition of the job does not give it back.
    assert "staging" not in client.get_registered_model(name).aliases
    with open_database(f"sqlite:///{tmp_path / 'registry.db'}") as engine:
        [waiting] = list_pending_events(engine, "/gpt2/registry", 10)
    assert waiting.event.key == name
    assert waiting.event.type == "gpt2.events.v1.ModelLabelChanged"


def registered(artifacts, context, name, loss, gate, **provenance):
    """Registers a model of this loss with the label `staging` behind a gate."""
    model = artifacts.model({**PROVENANCE, "validation_loss": loss, "validations": [], **provenance})
    request = pb.RegisterModelRequest(model_uri=model, model_name=name, label="staging", label_gate=gate)
    [output] = register_model(request, context)
    return output


@pytest.mark.parametrize(
    ("loss", "gate", "outcome"),
    [
        (3.0, pb.LabelGate(max_validation_loss=3.0), "set"),
        (3.5, pb.LabelGate(max_validation_loss=3.0), "not set: its validation loss of 3.5 is over the 3 allowed"),
        (3.5, pb.LabelGate(must_improve=True), "set"),
        (None, pb.LabelGate(must_improve=True), "not set: its validation loss is not known"),
        (None, pb.LabelGate(max_validation_loss=3.0), "not set: its validation loss is not known"),
    ],
    ids=("at the limit", "over it", "no labelled version", "unknown and no labelled version", "unknown and a limit"),
)
def test_gate_without_a_labelled_version(client, name, artifacts, make_context, loss, gate, outcome):
    output = registered(artifacts, make_context("gated"), name, loss, gate)
    assert output.properties["label_outcome"] == outcome
    [version] = versions_of(client, name)
    assert version.tags["gpt2.label_outcome"] == outcome
    assert ("staging" in client.get_registered_model(name).aliases) == (outcome == "set")


def test_gate_compares_with_the_labelled_version(client, name, artifacts, make_context):
    gate = pb.LabelGate(must_improve=True)
    outcomes = [
        registered(artifacts, make_context(f"gated-{number}"), name, loss, gate).properties["label_outcome"]
        for number, loss in enumerate((3.0, 3.5, 3.0, 2.5))
    ]
    refused = [f"not set: its validation loss of {loss} is not under the 3 of version 1" for loss in ("3.5", "3")]
    assert outcomes == ["set", *refused, "set"]
    assert client.get_model_version_by_alias(name, "staging").version == "4"
    other = registered(artifacts, make_context("other"), name, 1.0, gate, tokenizer_digest="a" * 64)
    assert "another tokenizer" in other.properties["label_outcome"]
    both = pb.LabelGate(must_improve=True, max_validation_loss=2.0)
    over = registered(artifacts, make_context("both"), name, 2.25, both)
    assert over.properties["label_outcome"] == "not set: its validation loss of 2.25 is over the 2 allowed"
    assert client.get_model_version_by_alias(name, "staging").version == "4"


RUINED = {"last_step": 30, "last_validation_loss": 22.9, "regressed": True, "warnings": "the training ended worse"}


def test_a_model_of_a_regressed_training_is_registered_and_moves_no_label(client, name, artifacts, make_context):
    held = registered(artifacts, make_context("good"), name, 3.0, None)
    assert held.properties["label_outcome"] == "set"
    context = make_context("regressed")
    output = registered(artifacts, context, name, 2.0, pb.LabelGate(must_improve=True), **RUINED)
    outcome = output.properties["label_outcome"]
    assert outcome.startswith("not set: its training ended with a worse validation loss than it began with")
    assert context.warnings == [f"version 2 of {name} is registered, but staging is {outcome}"]
    assert client.get_model_version_by_alias(name, "staging").version == "1"
    version = client.get_model_version(name, "2")
    assert version.tags["gpt2.regressed"] == "True"
    assert "**Warning:** the training ended worse" in version.description
    assert "At the end of the training, step 30: 22.900." in version.description
    metrics = client.get_run(version.run_id).data.metrics
    assert (metrics["validation_loss"], metrics["last_validation_loss"]) == (2.0, 22.9)


def test_a_label_moves_to_a_model_of_a_regressed_training_when_that_is_asked_for(client, name, artifacts, make_context):
    model = artifacts.model({**PROVENANCE, **RUINED, "last_validation_loss": None})
    request = pb.RegisterModelRequest(model_uri=model, model_name=name, label="staging", label_despite_regression=True)
    context = make_context("allowed")
    [output] = register_model(request, context)
    assert output.properties["label_outcome"] == "set"
    assert context.warnings == []
    assert client.get_model_version_by_alias(name, "staging").version == "1"


def test_gate_decides_once(client, name, artifacts, make_context):
    gate = pb.LabelGate(must_improve=True)
    registered(artifacts, make_context("labelled"), name, 3.0, gate)
    model = artifacts.model({**PROVENANCE, "validation_loss": 3.5})
    request = pb.RegisterModelRequest(model_uri=model, model_name=name, label="staging", label_gate=gate)
    first = register_model(request, make_context("worse"))
    client.delete_registered_model_alias(name, "staging")
    assert register_model(request, make_context("worse")) == first
    assert "staging" not in client.get_registered_model(name).aliases


def test_cancelled_job_leaves_no_version(client, name, artifacts, make_context):
    interruption = Interruption()
    interruption.cancel()
    request = pb.RegisterModelRequest(model_uri=artifacts.model(), model_name=name)
    with pytest.raises(JobCancelled):
        register_model(request, make_context("cancelled", interruption))
    assert versions_of(client, name) == []
    [run] = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert run.info.status == "KILLED"


def test_wrong_kind_of_artifact(artifacts, make_context):
    request = pb.RegisterModelRequest(model_uri=artifacts.make("corpus", {"a": "b"}), model_name="m")
    with pytest.raises(InvalidRequest, match=r"model_uri: .* is a corpus artifact; a model artifact is needed"):
        register_model(request, make_context("kind"))
    request = pb.RegisterModelRequest(model_uri=artifacts.model(), logs_uri=artifacts.model(), model_name="m")
    with pytest.raises(InvalidRequest, match="logs_uri"):
        register_model(request, make_context("kind"))


def test_missing_and_damaged_artifacts(artifacts, make_context):
    def run(**fields):
        return register_model(pb.RegisterModelRequest(model_name="m", **fields), make_context("damaged"))

    with pytest.raises(NotFound, match="is no artifact"):
        run(model_uri=(artifacts.root / "nothing").as_uri())
    with pytest.raises(FailedPrecondition, match=r"lacks tokenizer\.json: make it with ExportModel"):
        run(model_uri=artifacts.model(**{"tokenizer.json": None}))
    with pytest.raises(DataLoss, match=r"model\.json is damaged"):
        run(model_uri=artifacts.model(**{"model.json": "{"}))
    uri = artifacts.model()
    path = artifacts.root / uri.rsplit("/", 2)[1] / "model" / "config.json"
    path.write_bytes(path.read_bytes().replace(b"6", b"7"))
    with pytest.raises(DataLoss, match=r"config\.json is not what was written"):
        run(model_uri=uri)


def test_damaged_metrics_leave_no_version(client, name, artifacts, make_context):
    logs = artifacts.make("logs", {"metrics.jsonl": '{"step": 1, "loss": 1.0}\n{"step": 2, "lo\n'})
    request = pb.RegisterModelRequest(model_uri=artifacts.model(), logs_uri=logs, model_name=name)
    with pytest.raises(DataLoss, match="line 2 is damaged"):
        register_model(request, make_context("metrics"))
    assert versions_of(client, name) == []


def test_mlflow_that_is_down_is_named(artifacts, make_context):
    request = pb.RegisterModelRequest(model_uri=artifacts.model(), model_name="m")
    with pytest.raises(Unavailable, match="GPT2_MLFLOW_TRACKING_URI"):
        register_model(request, make_context("down", uri=f"http://127.0.0.1:{free_port()}"))
