"""The services' messages as the JSON of the API: what the page shows of them, and no more."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2.registry.v1 import registry_service_pb2 as registry_pb
from gpt2_contracts.artifact import VERSION
from gpt2_contracts.model_version import RUN_ID_TAG, VersionOutput, label_error
from gpt2_orchestration.client.jobs import error_text, state_name
from gpt2_orchestration.client.registered_models import described_tags
from gpt2_orchestration.client.runs import Run
from gpt2_orchestration.client.service_client import ServiceError

Json = dict[str, Any]

MAX_TEXT_LENGTH = 20_000
"""Characters of one text that the page is given; the rest is left out, and said to be."""


def describe_run(run: Run) -> Json:
    """A run with its jobs, oldest first, and its remaining stages."""
    return {
        "run_id": run.run_id,
        "state": run.state,
        "jobs": [describe_job(job) for job in run.jobs],
        "remaining_stages": list(run.remaining_stages),
        "omitted_jobs": run.omitted_jobs,
        "create_time": run.create_time.ToJsonString(),
    }


def describe_job(job: job_pb2.Job) -> Json:
    """A job without its outputs."""
    return {
        "job_id": job.job_id,
        "run_id": job.run_id,
        "service": job.service,
        "kind": job.kind,
        "state": state_name(job.state),
        "progress": {
            "phase": job.progress.phase,
            "done": job.progress.done,
            "total": job.progress.total,
            "unit": job.progress.unit,
            "rate": job.progress.rate,
            "metrics": _finite(job.progress.metrics),
        },
        "attempt": job.attempt,
        "actor": job.actor,
        "create_time": _time(job, "create_time"),
        "start_time": _time(job, "start_time"),
        "end_time": _time(job, "end_time"),
        "error": shorten(error_text(job)),
        "warnings": [shorten(text) for text in job.warnings],
        "cancel_requested": job.cancel_requested,
        "revision": job.revision,
        "remaining_stages": [stage.start for stage in job.plan.stages],
        "registered": [_registered(output) for output in job.outputs if output.kind == VERSION],
    }


def describe_job_whole(job: job_pb2.Job) -> Json:
    """A job with its outputs and what caused it."""
    return {
        **describe_job(job),
        "outputs": [describe_artifact(artifact) for artifact in job.outputs],
        "cause": f"{job.plan.cause.source} {job.plan.cause.id}".strip(),
    }


def describe_artifact(artifact: artifact_pb2.Artifact) -> Json:
    """An artifact: where it is, what it is, how much is in it."""
    return {
        "name": artifact.name,
        "kind": artifact.kind,
        "uri": artifact.uri,
        "digest": artifact.digest,
        "counts": _finite(artifact.counts),
        "properties": {name: shorten(value) for name, value in sorted(artifact.properties.items())},
    }


def describe_version(version: registry_pb.ModelVersion) -> Json:
    """A version of a model."""
    return {
        "version": version.version,
        "labels": list(version.labels),
        "uri": version.model_uri,
        "mlflow_run_id": version.mlflow_run_id,
        "metrics": _finite(version.metrics),
        "run_id": version.tags.get(RUN_ID_TAG, ""),
        "label_error": shorten(label_error(version.tags)),
        "tags": {name: shorten(value) for name, value in described_tags(version).items()},
        "evaluations": [
            {"measurement": _measurement(item.measurement), "metrics": _finite(item.metrics)}
            for item in version.evaluations
        ],
        "create_time": _time(version, "create_time"),
    }


def describe_comparison(name: str, compared: registry_pb.CompareModelsResponse) -> Json:
    """Versions side by side."""
    return {
        "name": name,
        "versions": [describe_version(version) for version in compared.model_versions],
        "metrics": _metrics(compared.metrics),
        "evaluations": [
            {"measurement": _measurement(item.measurement), "metrics": _metrics(item.metrics)}
            for item in compared.evaluations
        ],
        "parameters": _texts(compared.parameters),
        "lineage": _texts(compared.lineage),
        "samples": [shorten(text) for text in compared.samples],
    }


def describe_change(change: registry_pb.LabelChange) -> Json:
    """A change of a label."""
    return {
        "label": change.label,
        "previous_version": change.previous_version,
        "version": change.version,
        "actor": change.actor,
        "reason": change.reason,
        "time": _time(change, "time"),
    }


def describe_troubles(errors: Mapping[str, ServiceError]) -> list[Json]:
    """The services that did not answer."""
    return [{"service": name, "message": str(error)} for name, error in errors.items()]


def shorten(text: str) -> str:
    """A text that a page can hold."""
    if len(text) <= MAX_TEXT_LENGTH:
        return text
    return f"{text[:MAX_TEXT_LENGTH]}… ({len(text):,} characters in all)"


def _registered(output: artifact_pb2.Artifact) -> Json:
    """The version that a job has registered, in short."""
    version = VersionOutput.from_artifact(_finite(output.counts), output.properties)
    return {
        "model_name": version.model_name,
        "version": str(version.version or ""),
        "validation_loss": version.validation_loss,
    }


def _measurement(measurement: registry_pb.Measurement) -> Json:
    return {
        "kind": measurement.kind,
        "uri": measurement.uri,
        "digest": measurement.digest,
        "context_length": measurement.context_length,
        "sequences": measurement.sequences,
    }


def _metrics(rows: Iterable[registry_pb.ComparedMetric]) -> list[Json]:
    """Metrics by name; null where a version lacks one."""
    return [
        {"name": row.name, "values": [value if math.isfinite(value) else None for value in row.values]} for row in rows
    ]


def _texts(rows: Iterable[registry_pb.ComparedText]) -> list[Json]:
    return [{"name": row.name, "values": [shorten(value) for value in row.values]} for row in rows]


def _time(message: Any, field: str) -> str | None:
    if not message.HasField(field):
        return None
    time: Timestamp = getattr(message, field)
    return time.ToJsonString()


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics sorted by name; NaN and infinities are null, as JSON lacks them."""
    items: Iterable[tuple[str, float]] = sorted(metrics.items())
    return {name: value if math.isfinite(value) else None for name, value in items}
