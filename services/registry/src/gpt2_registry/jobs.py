"""RegisterModel: registers a model in MLflow as a new version, exactly once over all attempts."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import chain

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.database import database_url, open_database
from gpt2_common.events.outbox import add_to_outbox
from gpt2_common.jobs.context import JobContext
from gpt2_contracts.artifact import LOGS, MODEL, VERSION
from gpt2_contracts.events import CloudEvent
from gpt2_contracts.model_version import (
    JOB_ID_TAG,
    LABEL_OUTCOME_TAG,
    LABEL_SET,
    LOGS_DIGEST_TAG,
    NOT_READY,
    READINESS_TAG,
    REQUEST_DIGEST_TAG,
    RUN_ID_TAG,
    VersionOutput,
    label_not_set,
)
from gpt2_registry.ancestors import trace_ancestors
from gpt2_registry.curves import Curves
from gpt2_registry.label_lock import LabelLock
from gpt2_registry.label_rules import LabelRules, gate_refusal
from gpt2_registry.labels import LabelChange, Labels
from gpt2_registry.mlflow_connection import MlflowConnection
from gpt2_registry.mlflow_registry import MlflowRegistry, RegisteredVersion
from gpt2_registry.mlflow_versions import VersionWriter
from gpt2_registry.model_metadata import ModelMetadata, read_metrics, read_model
from gpt2_registry.report import write_report
from gpt2_registry.settings import RegistrySettings

_log = logging.getLogger(__name__)


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
    model = read_model(context.open("model_uri", request.model_uri, MODEL, verify=True))
    logs = context.open("logs_uri", request.logs_uri, LOGS, verify=True) if request.logs_uri else None
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
    model: ModelMetadata,
    logs: Artifact | None,
) -> int:
    run = writer.open_run()
    tags = _tags(request, context, model, logs)
    with writer.final_status(run):
        context.report("logging metrics")
        writer.log_metadata(run, model, tags)
        curves = Curves()
        points = chain(model.endpoint_metrics(), read_metrics(logs) if logs else model.validation_metrics())
        for logged in writer.log_metrics(run, curves.collect(points)):
            context.report("logging metrics", logged, unit="values")
            context.check_cancelled()
        context.report("writing the report")
        lineage = list(trace_ancestors(model.artifact, context.read_manifest))
        write_report(context.work / "report", request.model_name, model, curves, lineage)
        writer.log_files(run, context.work / "report")
        context.report("uploading")
        model_id = writer.log_model(run, model)
        context.check_cancelled()
        number = writer.create_version(run, model_id, tags, model.summary())
    _log.info("registered version %d of %s", number, request.model_name, extra={"version": number})
    return number


def _identity(context: JobContext[RegistrySettings]) -> Mapping[str, str]:
    return {JOB_ID_TAG: context.job_id, REQUEST_DIGEST_TAG: context.identity.request_digest}


def _tags(
    request: pb.RegisterModelRequest, context: JobContext[RegistrySettings], model: ModelMetadata, logs: Artifact | None
) -> dict[str, str]:
    tags = {**request.tags, **model.tags(), RUN_ID_TAG: context.identity.run_id, READINESS_TAG: NOT_READY}
    if logs is not None:
        tags[LOGS_DIGEST_TAG] = logs.digest
    return tags


def _set_label(
    request: pb.RegisterModelRequest, context: JobContext[RegistrySettings], registry: MlflowRegistry, number: int
) -> str:
    """Sets the label where the version may have it. Returns the outcome, which retries of the job keep."""
    rules = LabelRules.parse(context.settings.label_rules)
    with open_database(database_url("registry", context.settings)) as engine:
        lock = LabelLock(engine, context.settings.lease_seconds)
        # The gate compares with the version that has the label, which must keep it until it is moved.
        with lock.hold(request.model_name):
            outcome = _outcome(request, rules, registry, number)
            registry.set_version_tag(request.model_name, number, LABEL_OUTCOME_TAG, outcome)
            if outcome == LABEL_SET:
                change = LabelChange(
                    model_name=request.model_name,
                    label=request.label,
                    actor=context.identity.actor or f"job {context.job_id}",
                    job_id=context.job_id,
                    reason=request.reason,
                    operation=f"label-{context.identity.request_digest[:16]}-{number}",
                )
                Labels(registry, rules, partial(_publish, engine), lock).set_once(change, number)
    return outcome


def _outcome(request: pb.RegisterModelRequest, rules: LabelRules, registry: MlflowRegistry, number: int) -> str:
    version = registry.version(request.model_name, number)
    outcome = version.tags.get(LABEL_OUTCOME_TAG)
    if outcome is not None:
        return outcome
    number_before = registry.labels(request.model_name).get(request.label)
    labelled = None if number_before is None else registry.version(request.model_name, number_before)
    reason = gate_refusal(request, version, labelled) or rules.refusal(request.label, version)
    return label_not_set(reason) if reason else LABEL_SET


def _publish(engine: sql.Engine, event: CloudEvent) -> None:
    """Adds an event to the service's outbox, which its relay polls every second."""
    # That of an earlier attempt may still be pending.
    with suppress(IntegrityError), engine.begin() as connection:
        add_to_outbox(connection, event)


def _output(
    version: RegisteredVersion, model: ModelMetadata, run_url: str, label_outcome: str
) -> artifact_pb2.Artifact:
    described = VersionOutput(
        model_name=version.model_name,
        version=version.version,
        model_uri=version.uri,
        run_url=run_url,
        label_outcome=label_outcome,
        validation_loss=version.validation_loss,
    )
    return artifact_pb2.Artifact(
        name=VERSION,
        kind=VERSION,
        uri=version.uri,
        digest=model.artifact.digest,
        counts=described.to_counts(),
        properties=described.to_properties(),
    )
