"""The inbox: the events that were handled, committed with their effect, so that a redelivered one has none."""

import sqlalchemy as sql

from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import METADATA, clock, insert

_INBOX = sql.Table(
    "inbox",
    METADATA,
    sql.Column("consumer", sql.String(32), primary_key=True),
    sql.Column("source", sql.String(100), primary_key=True),
    sql.Column("event_id", sql.String(64), primary_key=True),
    sql.Column("received", sql.Float, nullable=False),
)


def receive(connection: sql.Connection, consumer: str, event: job_pb2.EventReference) -> bool:
    """Records an event within the caller's transaction. Returns whether it is a new one."""
    noted = connection.execute(
        insert(connection, _INBOX)
        .values(consumer=consumer, source=event.source, event_id=event.id, received=clock(connection))
        .on_conflict_do_nothing()
    )
    return noted.rowcount == 1
