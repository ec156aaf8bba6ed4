"""Handovers: jobs that have succeeded, and whose run's next stage is not known to have been started.

A row is written with the job's end and deleted when the next stage is known, so that the
table holds only runs in progress, however long the history is.
"""

from dataclasses import dataclass

import sqlalchemy as sql

from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import METADATA, clock, reading
from gpt2_common.jobs.cancelled_runs import is_cancelled
from gpt2_common.jobs.options import next_job_id

_HANDOVERS = sql.Table(
    "handovers",
    METADATA,
    sql.Column("service", sql.String(32), primary_key=True),
    sql.Column("job_id", sql.String(200), primary_key=True),
    sql.Column("run_id", sql.String(200), nullable=False),
    # Of the event of the job's success.
    sql.Column("event_id", sql.String(64), nullable=False),
    # Of the next stage.
    sql.Column("next_job_id", sql.String(200), nullable=False),
    # By the database's clock: when the job ended, and when its event is to be published again.
    sql.Column("ended", sql.Float, nullable=False),
    sql.Column("due", sql.Float, nullable=False),
    # Number of times that it was published again.
    sql.Column("repeats", sql.Integer, nullable=False),
    sql.Index("ix_handovers_due", "service", "due"),
    sql.Index("ix_handovers_next", "service", "next_job_id"),
)


@dataclass(frozen=True, slots=True)
class Handover:
    """A job that has succeeded, and the number of times that its event was published again."""

    job_id: str
    event_id: str
    repeats: int


@dataclass(frozen=True, slots=True)
class WaitingRuns:
    """Runs whose next stage is not known to have been started."""

    count: int
    oldest_seconds: float
    """Longest time that a run has waited since its last stage ended; 0 if there is none."""


def record_handover(connection: sql.Connection, job: job_pb2.Job, event_id: str) -> None:
    """Adds, within the caller's transaction, the handover of a job that has succeeded and has stages after it."""
    now = clock(connection)
    connection.execute(
        _HANDOVERS.insert().values(
            service=job.service,
            job_id=job.job_id,
            run_id=job.run_id,
            event_id=event_id,
            next_job_id=next_job_id(job),
            ended=now,
            due=now,
            repeats=0,
        )
    )


def complete_handover(engine: sql.Engine, service: str, job_id: str) -> None:
    """Deletes the handover of a job whose next stage has started."""
    with engine.begin() as connection:
        connection.execute(_HANDOVERS.delete().where(*_is_handover(service, job_id)))


def complete_handover_to(engine: sql.Engine, service: str, job_id: str) -> None:
    """Deletes the handover to a job that exists, if the stage before it is one of this service."""
    started = (_HANDOVERS.c.service == service, _HANDOVERS.c.next_job_id == job_id)
    with reading(engine) as connection:
        known = connection.execute(sql.select(_HANDOVERS.c.job_id).where(*started)).first()
    if known is not None:
        with engine.begin() as connection:
            connection.execute(_HANDOVERS.delete().where(*started))


def list_due_handovers(engine: sql.Engine, service: str, after_seconds: float, limit: int) -> list[Handover]:
    """Lists the handovers that are due, the longest waiting first, except those of cancelled runs.

    Args:
        engine: Where the tables are.
        service: Name of the service.
        after_seconds: Time after a job's end in which its event normally takes effect.
        limit: Maximum number to return.
    """
    with reading(engine) as connection:
        now = clock(connection)
        query = (
            sql.select(_HANDOVERS.c.job_id, _HANDOVERS.c.event_id, _HANDOVERS.c.repeats)
            .where(
                _HANDOVERS.c.service == service,
                _HANDOVERS.c.due <= now,
                _HANDOVERS.c.ended <= now - after_seconds,
                ~is_cancelled(_HANDOVERS.c.service, _HANDOVERS.c.run_id),
            )
            .order_by(_HANDOVERS.c.due)
            .limit(limit)
        )
        return [Handover(*row) for row in connection.execute(query)]


def find_handover(connection: sql.Connection, service: str, job_id: str) -> Handover | None:
    """Returns the handover of a job; None if its next stage is known to have started."""
    query = sql.select(_HANDOVERS.c.job_id, _HANDOVERS.c.event_id, _HANDOVERS.c.repeats)
    row = connection.execute(query.where(*_is_handover(service, job_id))).one_or_none()
    return None if row is None else Handover(*row)


def postpone_handover(connection: sql.Connection, service: str, job_id: str, seconds: float, *, repeated: bool) -> None:
    """Postpones a handover by a time from now."""
    values = {"due": clock(connection) + seconds, "repeats": _HANDOVERS.c.repeats + int(repeated)}
    connection.execute(_HANDOVERS.update().where(*_is_handover(service, job_id)).values(values))


def count_waiting_runs(engine: sql.Engine, service: str, after_seconds: float) -> WaitingRuns:
    """Counts the runs that have waited for longer than `after_seconds`, except cancelled ones."""
    with reading(engine) as connection:
        now = clock(connection)
        query = sql.select(sql.func.count(_HANDOVERS.c.run_id.distinct()), sql.func.min(_HANDOVERS.c.ended)).where(
            _HANDOVERS.c.service == service,
            _HANDOVERS.c.ended <= now - after_seconds,
            ~is_cancelled(_HANDOVERS.c.service, _HANDOVERS.c.run_id),
        )
        count, oldest = connection.execute(query).one()
    return WaitingRuns(count, max(0.0, now - oldest) if oldest is not None else 0.0)


def _is_handover(service: str, job_id: str) -> tuple["sql.ColumnElement[bool]", ...]:
    return (_HANDOVERS.c.service == service, _HANDOVERS.c.job_id == job_id)
