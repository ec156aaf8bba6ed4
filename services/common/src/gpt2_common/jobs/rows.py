"""The rows of jobs: each change and the event that tells of it are written in one transaction.

A row holds the job as its protobuf message; the columns beside it exist to be searched, or are the services' own.
Changes are made by compare-and-set on the revision, so that two writers cannot both move a job on.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sql
from google.protobuf.message import Message

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import METADATA
from gpt2_common.events.cloudevent import CloudEvent
from gpt2_common.events.outbox import add_to_outbox
from gpt2_common.failpoints import failpoint

JOBS = sql.Table(
    "jobs",
    METADATA,
    sql.Column("position", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("service", sql.String(32), nullable=False),
    sql.Column("job_id", sql.String(200), nullable=False),
    sql.Column("run_id", sql.String(200), nullable=False, index=True),
    sql.Column("kind", sql.String(64), nullable=False),
    sql.Column("state", sql.Integer, nullable=False, index=True),
    sql.Column("revision", sql.BigInteger, nullable=False),
    sql.Column("job", sql.LargeBinary, nullable=False),
    sql.Column("request", sql.LargeBinary, nullable=False),
    # Which replica runs it, until when by the database's clock unless that is put off.
    sql.Column("owner", sql.String(300)),
    sql.Column("leased_until", sql.Float),
    # Deaths of the service in a row that found the job no further than the one before, and how far it was then.
    sql.Column("deaths", sql.Integer),
    sql.Column("mark", sql.String(300)),
    sql.UniqueConstraint("service", "job_id"),
)


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job and the bytes of the request that created it."""

    job: job_pb2.Job
    request: bytes
    """Empty for a stage whose request in the run's plan could not be read."""
    owner: str | None = None
    """The replica that runs it, or ran it last."""


def select_job(connection: sql.Connection, service: str, job_id: str) -> StoredJob | None:
    """Reads a job; None when there is none."""
    query = sql.select(JOBS.c.job, JOBS.c.request, JOBS.c.owner).where(*is_job(service, job_id))
    row = connection.execute(query).one_or_none()
    return None if row is None else StoredJob(job_pb2.Job.FromString(row.job), row.request, row.owner)


def insert_job(connection: sql.Connection, job: job_pb2.Job, request: bytes) -> None:
    """Writes a new job and its event. Raises IntegrityError when its id is taken."""
    job.revision = 1
    job.create_time.GetCurrentTime()
    job.update_time.CopyFrom(job.create_time)
    connection.execute(
        JOBS.insert().values(
            service=job.service,
            job_id=job.job_id,
            run_id=job.run_id,
            kind=job.kind,
            state=job.state,
            revision=job.revision,
            job=job.SerializeToString(),
            request=request,
        )
    )
    _publish(connection, job, job_pb2.Job.STATE_UNSPECIFIED)


def update_job(connection: sql.Connection, before: job_pb2.Job, job: job_pb2.Job, **columns: object) -> bool:
    """Writes a changed job, and its event when its state changed. Returns False when another writer was first."""
    job.revision = before.revision + 1
    job.update_time.GetCurrentTime()
    updated = connection.execute(
        JOBS.update()
        .where(*is_job(job.service, job.job_id), JOBS.c.revision == before.revision)
        .values(state=job.state, revision=job.revision, job=job.SerializeToString(), **columns)
    )
    if updated.rowcount != 1:
        return False
    if job.state != before.state:
        _publish(connection, job, before.state)
        failpoint("before-job-commit")
    return True


def is_job(service: str, job_id: str) -> tuple["sql.ColumnElement[bool]", ...]:
    """The condition that finds one job."""
    return (JOBS.c.service == service, JOBS.c.job_id == job_id)


def job_event(service: str, job: job_pb2.Job, message: Message) -> CloudEvent:
    """The event that tells of a job's change; a run's events share a key, so that they keep their order."""
    return CloudEvent(
        id=str(uuid.uuid4()),
        source=f"/gpt2/{service}",
        type=message.DESCRIPTOR.full_name,
        subject=job.job_id,
        key=job.run_id,
        time=datetime.now(UTC),
        data=message.SerializeToString(),
    )


def _publish(connection: sql.Connection, job: job_pb2.Job, previous: "job_pb2.Job.State.ValueType") -> None:
    message = events_pb2.JobStateChanged(job=job, previous_state=previous)
    add_to_outbox(connection, job_event(job.service, job, message))
