"""Runs that were cancelled: events no longer start their stages."""

from dataclasses import dataclass

import sqlalchemy as sql

from gpt2_common.database import METADATA, lock

_CANCELLED_RUNS = sql.Table(
    "cancelled_runs",
    METADATA,
    sql.Column("service", sql.String(32), primary_key=True),
    sql.Column("run_id", sql.String(200), primary_key=True),
    sql.Column("reason", sql.Text, nullable=False),
    # Null in rows of versions that did not know their callers.
    sql.Column("caller", sql.Text),
)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Why a job ends CANCELLED.

    Args:
        caller: Who cancelled it, as a sentence names them.
        reason: Why; empty where none was given.
    """

    caller: str
    reason: str

    def __str__(self) -> str:
        """The message of the job's error."""
        return f"cancelled by {self.caller}" + (f": {self.reason}" if self.reason else "")


def mark_cancelled(engine: sql.Engine, service: str, run_id: str, cancellation: Cancellation) -> None:
    """Keeps events from starting further stages of a run."""
    with engine.begin() as connection:
        lock(connection, run_id)
        connection.execute(_CANCELLED_RUNS.delete().where(*_is_run(service, run_id)))
        values = {"reason": cancellation.reason, "caller": cancellation.caller}
        connection.execute(_CANCELLED_RUNS.insert().values(service=service, run_id=run_id, **values))


def unmark_cancelled(engine: sql.Engine, service: str, run_id: str) -> None:
    """Lets events start stages of a run again."""
    with engine.begin() as connection:
        connection.execute(_CANCELLED_RUNS.delete().where(*_is_run(service, run_id)))


def find_cancellation(connection: sql.Connection, service: str, run_id: str) -> Cancellation | None:
    """Who cancelled a run, and why; None for one that is not cancelled. The caller has locked the run's id."""
    query = sql.select(_CANCELLED_RUNS.c.caller, _CANCELLED_RUNS.c.reason).where(*_is_run(service, run_id))
    row = connection.execute(query).one_or_none()
    return None if row is None else Cancellation(row.caller or "a caller", row.reason)


def is_cancelled(service: "sql.ColumnElement[str]", run_id: "sql.ColumnElement[str]") -> "sql.ColumnElement[bool]":
    """The condition that a row's run was cancelled."""
    of_row = (_CANCELLED_RUNS.c.service == service, _CANCELLED_RUNS.c.run_id == run_id)
    return sql.select(_CANCELLED_RUNS.c.run_id).where(*of_row).exists()


def _is_run(service: str, run_id: str) -> tuple["sql.ColumnElement[bool]", ...]:
    return (_CANCELLED_RUNS.c.service == service, _CANCELLED_RUNS.c.run_id == run_id)
