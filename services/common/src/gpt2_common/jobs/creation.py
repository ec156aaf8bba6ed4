"""How jobs come to be: once for each id, by a call or by an event, as long as there is room for another."""

import hashlib
import uuid
from collections.abc import Sequence
from typing import cast

import sqlalchemy as sql
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.rpc import status_pb2
from sqlalchemy.exc import IntegrityError

from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import catalogue
from gpt2_common.database import lock
from gpt2_common.errors import AlreadyExists, ResourceExhausted
from gpt2_common.events.inbox import receive
from gpt2_common.failpoints import failpoint
from gpt2_common.identity import current_caller
from gpt2_common.jobs.cancelled_runs import find_cancellation
from gpt2_common.jobs.definition import StartRequest
from gpt2_common.jobs.outcome import Cancelled, Failed, apply_outcome
from gpt2_common.jobs.rows import JOBS, insert_job, pack_unparsed, select_job
from gpt2_common.jobs.store import JobStore


def create_job(store: JobStore, kind: str, request: StartRequest, warnings: Sequence[str] = ()) -> job_pb2.Job:
    """Creates the job that a start call asks for, or returns the one that it asked for before.

    If an event starts it, the event is recorded as received in the same transaction, and a job of a run
    that was cancelled is created CANCELLED. Its actor is the current caller.

    Raises:
        AlreadyExists: The id belongs to a job with another request or plan.
        ResourceExhausted: Too many jobs wait.
    """
    digest = request_digest(request)
    job = _new_job(store, kind, request.job, digest)
    job.inputs.extend(catalogue().stages[kind].input_artifacts(cast(Message, request)))
    job.warnings.extend(warnings)
    try:
        found = _insert(store, job, without_plan(request).SerializeToString(deterministic=True))
    except IntegrityError:
        # Another call created it between the select and the insert.
        found = store.get(job.job_id).job
    if found is None:
        failpoint("after-job-commit")
        return job
    if found.kind != kind or found.request_digest != digest or found.plan.stages != job.plan.stages:
        raise AlreadyExists(
            f"job {job.job_id} exists with another request or plan ({found.kind}): "
            "choose another job_id, or repeat the same request",
            job_id=job.job_id,
        )
    return store.retry(found.job_id) if request.job.retry_failed else found


def create_refused(
    store: JobStore,
    kind: str,
    options: job_pb2.JobOptions,
    request: StartRequest | Struct,
    error: status_pb2.Status,
) -> job_pb2.Job:
    """Creates the job of a stage that an event starts and that is refused: it is FAILED.

    Args:
        store: Where.
        kind: The start call.
        options: The stage's id, and the rest of the plan.
        request: The request, or the JSON form of one that could not be read.
        error: Why it cannot be started.
    """
    if isinstance(request, Struct):
        content = pack_unparsed(request)
        digest = hashlib.sha256(content).hexdigest()
    else:
        content = without_plan(request).SerializeToString(deterministic=True)
        digest = request_digest(request)
    job = _new_job(store, kind, options, digest)
    if not isinstance(request, Struct):
        job.inputs.extend(catalogue().stages[kind].input_artifacts(cast(Message, request)))
    apply_outcome(job, Failed(error))
    return _insert(store, job, content) or job


def request_digest(request: StartRequest) -> str:
    """SHA-256 of a request without its job options: identifies the work, whoever requests it."""
    message = cast(Message, request)
    work = type(message).FromString(message.SerializeToString())
    work.ClearField("job")
    return hashlib.sha256(work.SerializeToString(deterministic=True)).hexdigest()


def without_plan(request: StartRequest) -> Message:
    """A copy of a request without its plan, which its job has."""
    message = cast(Message, request)
    copy = type(message)()
    copy.CopyFrom(message)
    cast(StartRequest, copy).job.ClearField("plan")
    return copy


def _new_job(store: JobStore, kind: str, options: job_pb2.JobOptions, digest: str) -> job_pb2.Job:
    job_id = options.job_id or f"{store.service}-{uuid.uuid4().hex[:12]}"
    return job_pb2.Job(
        job_id=job_id,
        run_id=options.run_id or job_id.partition("/")[0],
        service=store.service,
        kind=kind,
        state=job_pb2.Job.STATE_QUEUED,
        request_digest=digest,
        plan=options.plan if options.HasField("plan") else None,
        actor=current_caller().actor,
    )


def _insert(store: JobStore, job: job_pb2.Job, request: bytes) -> job_pb2.Job | None:
    """Writes a new job; returns the one that there is already."""
    by_event = bool(job.plan.cause.id)
    with store.engine.begin() as connection:
        if by_event:
            lock(connection, job.run_id)
            receive(connection, store.service, job.plan.cause)
        found = select_job(connection, store.service, job.job_id)
        if found is not None:
            return found.job
        cancellation = find_cancellation(connection, store.service, job.run_id) if by_event else None
        if cancellation is not None:
            apply_outcome(job, Cancelled(str(cancellation)))
        if job.state == job_pb2.Job.STATE_QUEUED:
            _require_place(store, connection)
        insert_job(connection, job, request)
        failpoint("before-job-commit")
        return None


def _require_place(store: JobStore, connection: sql.Connection) -> None:
    waiting = connection.execute(
        sql.select(sql.func.count())
        .select_from(JOBS)
        .where(JOBS.c.service == store.service, JOBS.c.state == job_pb2.Job.STATE_QUEUED)
    ).scalar_one()
    if waiting >= store.queue_limit:
        raise ResourceExhausted(
            f"{waiting} jobs wait already, the limit of GPT2_QUEUE_LIMIT: retry when some have ended"
        )
