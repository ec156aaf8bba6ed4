"""How jobs come to be: once for each id, by a call or by an event, as long as there is room for another."""

import hashlib
import uuid
from typing import cast

import sqlalchemy as sql
from google.protobuf.message import Message
from google.rpc import status_pb2
from sqlalchemy.exc import IntegrityError

from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import lock
from gpt2_common.errors import AlreadyExists, ResourceExhausted
from gpt2_common.events.inbox import receive
from gpt2_common.failpoints import failpoint
from gpt2_common.jobs.cancelled_runs import why_cancelled
from gpt2_common.jobs.definition import StartRequest
from gpt2_common.jobs.rows import JOBS, insert_job, select_job
from gpt2_common.jobs.store import JobStore, end_badly, end_cancelled


def create_job(store: JobStore, kind: str, request: StartRequest) -> job_pb2.Job:
    """Creates the job that a start call asks for, or returns the one that it asked for before.

    Where an event asks for it, that the event was received is noted in the same transaction, and a job of a run
    that was cancelled is created CANCELLED.

    Raises:
        AlreadyExists: The id belongs to a job with another request or plan.
        ResourceExhausted: Too many jobs wait.
    """
    digest = request_digest(request)
    job = _new_job(store, kind, request.job, digest)
    try:
        found = _insert(store, job, request.SerializeToString(deterministic=True))
    except IntegrityError:
        # Another call created it between our look and our insert.
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
    return store.queue_again(found.job_id) if request.job.retry_failed else found


def create_refused(
    store: JobStore, kind: str, options: job_pb2.JobOptions, request: bytes, error: status_pb2.Status
) -> job_pb2.Job:
    """Notes a stage that an event asks for and that cannot be started: the job is created FAILED."""
    job = _new_job(store, kind, options, hashlib.sha256(request).hexdigest())
    end_badly(job, error)
    return _insert(store, job, request) or job


def request_digest(request: StartRequest) -> str:
    """SHA-256 of a request without its job options: what the work is, whoever asks for it."""
    message = cast(Message, request)
    work = type(message).FromString(message.SerializeToString())
    work.ClearField("job")
    return hashlib.sha256(work.SerializeToString(deterministic=True)).hexdigest()


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
        reason = why_cancelled(connection, store.service, job.run_id) if by_event else None
        if reason is not None:
            end_cancelled(job, reason)
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
