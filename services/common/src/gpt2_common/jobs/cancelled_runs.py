"""Runs that were cancelled: what events ask for of them is not started any more."""

import sqlalchemy as sql

from gpt2_common.database import METADATA, lock

_CANCELLED_RUNS = sql.Table(
    "cancelled_runs",
    METADATA,
    sql.Column("service", sql.String(32), primary_key=True),
    sql.Column("run_id", sql.String(200), primary_key=True),
    sql.Column("reason", sql.Text, nullable=False),
)


def mark_cancelled(engine: sql.Engine, service: str, run_id: str, reason: str) -> None:
    """Keeps stages of a run that events ask for from starting."""
    with engine.begin() as connection:
        lock(connection, run_id)
        connection.execute(_CANCELLED_RUNS.delete().where(*_is_run(service, run_id)))
        connection.execute(_CANCELLED_RUNS.insert().values(service=service, run_id=run_id, reason=reason))


def unmark_cancelled(engine: sql.Engine, service: str, run_id: str) -> None:
    """Lets stages of a run start again."""
    with engine.begin() as connection:
        connection.execute(_CANCELLED_RUNS.delete().where(*_is_run(service, run_id)))


def why_cancelled(connection: sql.Connection, service: str, run_id: str) -> str | None:
    """The reason that a run was cancelled for; None where it was not. The caller has locked the run's id."""
    query = sql.select(_CANCELLED_RUNS.c.reason).where(*_is_run(service, run_id))
    reason: str | None = connection.execute(query).scalar_one_or_none()
    return reason


def _is_run(service: str, run_id: str) -> tuple["sql.ColumnElement[bool]", ...]:
    return (_CANCELLED_RUNS.c.service == service, _CANCELLED_RUNS.c.run_id == run_id)
