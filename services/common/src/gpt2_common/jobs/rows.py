"""The rows of jobs: each change and its event are written in one transaction.

A row holds the job as its protobuf message, without the bulk of its plan (plans.py); the columns beside it exist to be
searched, or are the services' own. Lists of runs have other tables (run_rows.py).
Changes are made by compare-and-set on the revision, so that of two writers one alone changes a job.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import sqlalchemy as sql
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import METADATA, lock
from gpt2_common.events.outbox import add_to_outbox
from gpt2_common.failpoints import failpoint
from gpt2_common.jobs.handovers import record_handover
from gpt2_common.jobs.plans import plan_details, restore_plan, strip_plan
from gpt2_common.jobs.run_rows import RUNS, add_summary, add_to_run, update_summary
from gpt2_contracts.events import CloudEvent, source_of

JOBS = sql.Table(
    "jobs",
    METADATA,
    sql.Column("position", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("service", sql.String(32), nullable=False),
    sql.Column("job_id", sql.String(200), nullable=False),
    sql.Column("run_id", sql.String(200), nullable=False),
    sql.Column("kind", sql.String(64), nullable=False),
    sql.Column("state", sql.Integer, nullable=False),
    sql.Column("revision", sql.BigInteger, nullable=False),
    sql.Column("job", sql.LargeBinary, nullable=False),
    sql.Column("request", sql.LargeBinary, nullable=False),
    # The lease of the replica that runs it; see lease.py.
    sql.Column("owner", sql.String(300)),
    sql.Column("leased_until", sql.Float),
    # Consecutive crashes of the service without progress of the job, and the job's progress at the last one.
    sql.Column("deaths", sql.Integer, key="crashes"),
    sql.Column("mark", sql.String(300), key="progress_at_crash"),
    # What of its plan is in neither `job` nor its run's row.
    sql.Column("plan", sql.LargeBinary),
    sql.UniqueConstraint("service", "job_id"),
    # For lists, which are in the order of positions.
    sql.Index("ix_jobs_newest", "service", "position"),
    sql.Index("ix_jobs_newest_in_state", "service", "state", "position"),
    sql.Index("ix_jobs_newest_of_run", "service", "run_id", "position"),
)


_UNPARSED = b"\xff"
"""First byte of what is stored for a request that could not be parsed; no field of a message has its wire type."""


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job and the bytes of the request that created it."""

    job: job_pb2.Job
    request: bytes
    """As `pack_unparsed` makes it for a stage whose request in the run's plan could not be parsed; empty where an
    earlier version has created that."""
    owner: str | None = None
    """The replica that runs it, or ran it last."""


def pack_unparsed(form: Struct) -> bytes:
    """What is stored for a request that could not be parsed: its JSON form, which a correction can repair."""
    return _UNPARSED + form.SerializeToString(deterministic=True)


def unpack_unparsed(content: bytes) -> Struct | None:
    """The JSON form of a request that could not be parsed; None where the content is a request, or empty."""
    return Struct.FromString(content.removeprefix(_UNPARSED)) if content.startswith(_UNPARSED) else None


def select_job(connection: sql.Connection, service: str, job_id: str) -> StoredJob | None:
    """Reads a whole job; None when there is none."""
    query = select_whole(JOBS.c.request, JOBS.c.owner).where(*is_job(service, job_id))
    row = connection.execute(query).one_or_none()
    return None if row is None else StoredJob(whole_job(row), row.request, row.owner)


def select_whole(*columns: "sql.ColumnElement[Any]") -> "sql.Select[Any]":
    """A query for what `whole_job` needs, and other columns."""
    of_job = (RUNS.c.service == JOBS.c.service) & (RUNS.c.run_id == JOBS.c.run_id)
    query = sql.select(JOBS.c.job, JOBS.c.plan, RUNS.c.plan.label("run_plan"), *columns)
    return query.select_from(JOBS.outerjoin(RUNS, of_job))


def whole_job(row: "sql.Row[Any]") -> job_pb2.Job:
    """The job of a row that `select_whole` returns."""
    return restore_plan(job_pb2.Job.FromString(row.job), row.plan, row.run_plan)


def newest_positions(
    connection: sql.Connection, service: str, run_id: str, states: Sequence[int], before: int | None, limit: int
) -> list[int]:
    """Positions of the newest jobs, newest first, without reading the jobs.

    Args:
        connection: To the database.
        service: Whose jobs.
        run_id: Only jobs of this run, unless empty.
        states: Only jobs in one of these states, unless empty.
        before: Only jobs before this position.
        limit: Maximum number of positions.
    """
    query = sql.select(JOBS.c.position).where(JOBS.c.service == service)
    query = query.order_by(JOBS.c.position.desc()).limit(limit)
    if before is not None:
        query = query.where(JOBS.c.position < before)
    if run_id:
        # Computed, so that no database takes the index of states, in which a run's jobs are far between.
        in_state = [(JOBS.c.state + 0).in_(states)] if states else []
        return list(connection.execute(query.where(JOBS.c.run_id == run_id, *in_state)).scalars())
    if not states:
        return list(connection.execute(query).scalars())
    # Each by itself, in the order of its index: of several at once, all would be sorted.
    found = [connection.execute(query.where(JOBS.c.state == state)).scalars() for state in set(states)]
    return sorted(chain.from_iterable(found), reverse=True)[:limit]


def insert_job(connection: sql.Connection, job: job_pb2.Job, request: bytes) -> None:
    """Writes a new job and its event. Raises IntegrityError when its id is taken."""
    job.revision = 1
    job.create_time.GetCurrentTime()
    job.update_time.CopyFrom(job.create_time)
    # Before the row: an insert with the same id waits for this transaction, which must not wait for its lock then.
    lock(connection, job.run_id)
    run_plan = add_to_run(connection, job)
    position = connection.execute(
        JOBS.insert()
        .values(
            service=job.service,
            job_id=job.job_id,
            run_id=job.run_id,
            kind=job.kind,
            state=job.state,
            revision=job.revision,
            job=strip_plan(job).SerializeToString(),
            plan=plan_details(job, run_plan.stages),
            request=request,
        )
        .returning(JOBS.c.position)
    ).scalar_one()
    add_summary(connection, job, position)
    _publish(connection, job, job_pb2.Job.STATE_UNSPECIFIED)


def update_job(connection: sql.Connection, before: job_pb2.Job, job: job_pb2.Job, **columns: object) -> bool:
    """Writes a changed job, and its event when its state changed. Returns False when another writer was first."""
    job.revision = before.revision + 1
    job.update_time.GetCurrentTime()
    values = {"state": job.state, "revision": job.revision, "job": strip_plan(job).SerializeToString(), **columns}
    update = JOBS.update().where(*is_job(job.service, job.job_id), JOBS.c.revision == before.revision).values(values)
    if job.plan == before.plan and _update_without_plan(connection, update, job):
        updated = True
    else:
        # The plan is another, or the row is one of a version before, which has the plan in the job.
        updated = connection.execute(update.values(plan=plan_details(job))).rowcount == 1
    if not updated:
        return False
    _note_change(connection, job)
    if job.state != before.state:
        _publish(connection, job, before.state)
        failpoint("before-job-commit")
    return True


def _update_without_plan(connection: sql.Connection, update: sql.Update, job: job_pb2.Job) -> bool:
    """Makes an update that leaves the plan as it is; False, and nothing, where the row does not have it apart."""
    apart = (JOBS.c.plan.is_not(None),) if job.HasField("plan") else ()
    return connection.execute(update.where(*apart)).rowcount == 1


def _note_change(connection: sql.Connection, job: job_pb2.Job) -> None:
    position = sql.select(JOBS.c.position).where(*is_job(job.service, job.job_id))
    if not update_summary(connection, job, position.scalar_subquery()):
        # Written by a replica of a version before.
        lock(connection, job.run_id)
        add_to_run(connection, job)
        add_summary(connection, job, connection.execute(position).scalar_one())


def is_job(service: str, job_id: str) -> tuple["sql.ColumnElement[bool]", ...]:
    """The condition that finds one job."""
    return (JOBS.c.service == service, JOBS.c.job_id == job_id)


def job_event(service: str, job: job_pb2.Job, message: Message) -> CloudEvent:
    """The event of a job's change; a run's events share a key, so that they keep their order."""
    return CloudEvent(
        id=str(uuid.uuid4()),
        source=source_of(service),
        type=message.DESCRIPTOR.full_name,
        subject=job.job_id,
        key=job.run_id,
        time=datetime.now(UTC),
        data=message.SerializeToString(),
    )


def _publish(connection: sql.Connection, job: job_pb2.Job, previous: "job_pb2.Job.State.ValueType") -> None:
    message = events_pb2.JobStateChanged(job=job, previous_state=previous)
    event = job_event(job.service, job, message)
    add_to_outbox(connection, event)
    if job.state == job_pb2.Job.STATE_SUCCEEDED and job.plan.stages:
        record_handover(connection, job, event.id)
