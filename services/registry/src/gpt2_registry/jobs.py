"""RegisterModel: puts a model into MLflow as a new version, once, however often it is tried."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import chain

from sqlalchemy.exc import IntegrityError

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.database import database_url, open_database
from gpt2_common.events.cloudevent import CloudEvent
from gpt2_common.events.outbox import add_to_outbox
from gpt2_common.jobs.context import JobContext
from gpt2_common.jobs.definition import JobKind
from gpt2_registry.curves import Curves
from gpt2_registry.gate import refusal, ruin
from gpt2_registry.labels import READINESS_TAG, LabelChange, Labels
from gpt2_registry.lineage import trace
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.mlflow_registry import MlflowRegistry, RegisteredVersion
from gpt2_registry.mlflow_versions import VersionWriter
from gpt2_registry.registration import ModelFacts, read_metrics, read_model
from gpt2_registry.report import write_report
from gpt2_registry.rules import NOT_READY, LabelRules
from gpt2_registry.settings import RegistrySettings

LABEL_OUTCOME_TAG = "gpt2.label_outcome"
LABEL_SET = "set"

_log = logging.getLogger(__name__)

REGISTER_MODEL = JobKind(
    name="RegisterModel",
    request=pb.RegisterModelRequest,
    function="gpt2_registry.jobs:register_model",
    settings=RegistrySettings,
    inputs={"model_uri": "model", "logs_uri": "logs"},
)


def register_model(
    request: pb.RegisterModelRequest, context: JobContext[RegistrySettings]
) -> list[artifact_pb2.Artifact]:
    """Registers a model.

    Returns:
        The output `version`.

    Raises:
        PipelineError: The artifacts are not what they should be, or MLflow does not take the model.
    """
    context.report("verifying")
    model = read_model(context.open("model_uri", request.model_uri, "model", verify=True))
    logs = context.open("logs_uri", request.logs_uri, "logs", verify=True) if request.logs_uri else None
    connection = MlflowConnection(context.settings.mlflow_tracking_uri)
    writer = VersionWriter(connection, request.model_name, _identity(context))
    number = writer.find_version()
    if number is None:
        number = _make_version(request, context, writer, model, logs)
    registry = MlflowRegistry(connection)
    outcome = ""
    if request.label:
        context.report("labelling")
        outcome = _set_label(request, context, registry, number)
        if outcome != LABEL_SET:
            context.warn(f"version {number} of {request.model_name} is registered, but {request.label} is {outcome}")
    version = registry.version(request.model_name, number)
    return [_output(version, model, writer.run_url(version.run_id), outcome)]


def _make_version(
    request: pb.RegisterModelRequest,
    context: JobContext[RegistrySettings],
    writer: VersionWriter,
    model: ModelFacts,
    logs: Artifact | None,
) -> int:
    run = writer.open_run()
    tags = _tags(request, context, model, logs)
    with writer.status_told(run):
        context.report("logging metrics")
        writer.log_facts(run, model, tags)
        curves = Curves()
        points = chain(model.initial_metrics(), read_metrics(logs) if logs else model.metrics())
        for logged in writer.log_metrics(run, curves.passing(points)):
            context.report("logging metrics", logged, unit="values")
            context.check_cancelled()
        context.report("writing the report")
        lineage = list(trace(model.artifact, context.read_manifest))
        write_report(context.work / "report", request.model_name, model, curves, lineage)
        writer.log_files(run, context.work / "report")
        context.report("uploading")
        model_id = writer.log_model(run, model)
        context.check_cancelled()
        number = writer.create_version(run, model_id, tags, model.summary())
    _log.info("registered version %d of %s", number, request.model_name, extra={"version": number})
    return number


def _identity(context: JobContext[RegistrySettings]) -> Mapping[str, str]:
    return {"gpt2.job_id": context.job_id, "gpt2.request_digest": context.identity.request_digest}


def _tags(
    request: pb.RegisterModelRequest, context: JobContext[RegistrySettings], model: ModelFacts, logs: Artifact | None
) -> dict[str, str]:
    tags = {**request.tags, **model.tags(), "gpt2.run_id": context.identity.run_id, READINESS_TAG: NOT_READY}
    if logs is not None:
        tags["gpt2.logs_digest"] = logs.digest
    return tags


def _set_label(
    request: pb.RegisterModelRequest, context: JobContext[RegistrySettings], registry: MlflowRegistry, number: int
) -> str:
    """Sets the label where the version may have it. Returns the outcome, which a repetition of the job keeps."""
    rules = LabelRules.parse(context.settings.label_rules)
    outcome = _outcome(request, rules, registry, number)
    registry.set_version_tag(request.model_name, number, LABEL_OUTCOME_TAG, outcome)
    if outcome == LABEL_SET:
        change = LabelChange(
            model_name=request.model_name,
            label=request.label,
            actor=f"job {context.job_id}",
            reason=request.reason,
            operation=f"label-{context.identity.request_digest[:16]}-{number}",
        )
        publish = partial(_publish, database_url("registry", context.settings))
        Labels(registry, rules, publish).set_once(change, number)
    return outcome


def _outcome(request: pb.RegisterModelRequest, rules: LabelRules, registry: MlflowRegistry, number: int) -> str:
    version = registry.version(request.model_name, number)
    decided = version.tags.get(LABEL_OUTCOME_TAG)
    if decided is not None:
        return decided
    holding = registry.labels(request.model_name).get(request.label)
    holder = None if holding is None else registry.version(request.model_name, holding)
    why_not = (
        ruin(request, version) or refusal(request.label_gate, version, holder) or rules.refusal(request.label, version)
    )
    return f"not set: {why_not}" if why_not else LABEL_SET


def _publish(database_url: str, event: CloudEvent) -> None:
    """Adds an event to the service's outbox, whose relay looks there every second."""
    # One that an attempt before has added may still wait there.
    with suppress(IntegrityError), open_database(database_url) as engine, engine.begin() as connection:
        add_to_outbox(connection, event)


def _output(version: RegisteredVersion, model: ModelFacts, run_url: str, outcome: str) -> artifact_pb2.Artifact:
    loss = version.validation_loss
    return artifact_pb2.Artifact(
        name="version",
        kind="version",
        uri=version.uri,
        digest=model.artifact.digest,
        counts={"version": version.version, **({} if loss is None else {"validation_loss": loss})},
        properties={
            "model_name": version.model_name,
            "version": str(version.version),
            "model_uri": version.uri,
            "run_url": run_url,
            **({"label_outcome": outcome} if outcome else {}),
        },
    )
